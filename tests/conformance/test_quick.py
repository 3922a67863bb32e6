"""The conformance suite in small: one sample of each of some sixty operators, through a server of one worker.

The whole suite is `python tests/conformance/run.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import gradoracle as go
from conformance.judge import Ask, Outcome, through
from conformance.processes import sweep

OPERATORS = """
    add addmm amax as_strided atan2 baddbmm bernoulli bmm cat cdist cholesky_solve clamp complex cumprod einsum
    expand fft.irfftn fft.rfft2 gather index_add index_put kthvalue linalg.cholesky linalg.det linalg.eigh
    linalg.matrix_norm linalg.pinv linalg.qr linalg.solve linalg.svd logcumsumexp logsumexp
    masked_select matmul max.reduction_with_dim max_pool2d_with_indices_backward native_batch_norm
    native_dropout_backward nn.functional.conv2d nn.functional.cross_entropy nn.functional.ctc_loss
    nn.functional.dropout nn.functional.embedding nn.functional.gaussian_nll_loss nn.functional.gelu
    nn.functional.grid_sample nn.functional.group_norm nn.functional.interpolate.bicubic nn.functional.layer_norm
    nn.functional.linear_cross_entropy.chunked nn.functional.multi_head_attention_forward
    nn.functional.scaled_dot_product_attention norm prod renorm scatter_reduce.amax _segment_reduce.lengths sgn
    sort sparse.sampled_addmm std_mean svd_lowrank take_along_dim tensor_split to_sparse topk trapezoid unfold var
    where
"""


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """A server whose worker adds in the order in which this process does."""
    threads = torch.get_num_threads()
    with go.local_server(workers=1, threads=1) as address, go.Client(address) as client:
        yield through(client)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", OPERATORS.split())
def test_an_operator(name: str, ask: Ask) -> None:
    """Its outputs and every gradient have the bits of eager torch's."""
    found = list(sweep([name], torch.float64, ask, limit=1))
    assert [(one.outcome, one.reason) for one in found if one.outcome is not Outcome.EXACT] == []
    assert found
