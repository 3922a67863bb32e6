"""Right gradients that checks have once rejected, and why they seemed wrong."""

from __future__ import annotations

import pytest
import torch

from conformance.corpus import rights
from gradoracle_server.engine.report import Mode

ONCE = [
    ("float64 order 2", "logcumsumexp", 0, "as a whole the rounding of a logarithm of ten thousands"),
    ("float64 order 2", "nn.functional.scaled_dot_product_attention", 1, "the shortest steps saw rounding inside"),
    ("float32", "polygamma.polygamma_n_0", 0, "moved coordinates are rounded, near a pole"),
    ("float32", "nn.functional.linear_cross_entropy.chunked", 0, "its graph cannot run in float64"),
    ("float64 order 2", "nn.functional.multi_head_attention_forward", 0, "all short steps saw the same rounding"),
    ("float32", "nn.functional.scaled_dot_product_attention", 3, "it is nothing beside the function, and so rounding"),
    ("bfloat16", "nn.functional.fractional_max_pool3d", 1, "its shadow pools other windows"),
]
SEEDS = 4


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("ignore")  # of operators without a batching rule, and of torch's own samples
@pytest.mark.parametrize(("kind", "operator", "sample", "why"), ONCE, ids=[f"{one[1]}, {one[0]}" for one in ONCE])
def test_what_was_rejected_once_is_not_again(kind: str, operator: str, sample: int, why: str) -> None:
    """A verdict, and not that of a wrong gradient; numbers of three digits may tie in a window."""
    torch.manual_seed(0)  # the samples are drawn
    found = [one for one in rights.records(operator, kind, Mode.PROBE, sample + 1, SEEDS) if one["sample"] == sample]
    assert len(found) == SEEDS
    for one in found:
        assert one["verdict"] in ("PASS", "INCONCLUSIVE", "NON_DIFFERENTIABLE"), f"{why}: {one['said']}"
