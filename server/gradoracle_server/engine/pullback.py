"""Pull-backs through a run that autograd has recorded: of one cotangent, and of every unit cotangent at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch._C import _functorch
from torch._functorch.vmap import lazy_load_decompositions  # type: ignore[attr-defined]

from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.program import computation_failed

_CHUNK_BYTES = 256 * 1024 * 1024  # of cotangents and gradients pulled back together in one batch


def pull_back(
    roots: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor | None],
    targets: Sequence[torch.Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    batched: bool = False,
) -> list[torch.Tensor | None]:
    """Gradients of sum of <cotangent, root> by the targets; None where there is no dependence.

    Roots whose cotangent is None or that need no grad contribute nothing; targets that need no grad get None.
    Raises Fault where a backward formula raises.
    """
    pairs = [(root, one) for root, one in zip(roots, cotangents, strict=True) if one is not None and root.requires_grad]
    live = [target for target in targets if target.requires_grad]
    if not pairs or not live:
        return [None] * len(targets)
    try:
        if batched:
            found = iter(
                torch.autograd.grad(
                    [root for root, _ in pairs],
                    live,
                    grad_outputs=[one for _, one in pairs],
                    allow_unused=True,
                    create_graph=create_graph,
                    retain_graph=retain_graph,
                    is_grads_batched=True,
                )
            )
        else:
            # What torch.autograd.grad calls in the end; it checks the arguments before, which is done here already,
            # and in a small request takes longer for that than for the work.
            found = iter(
                torch.autograd.Variable._execution_engine.run_backward(
                    tuple(root for root, _ in pairs),
                    tuple(one for _, one in pairs),
                    create_graph if retain_graph is None else retain_graph,
                    create_graph,
                    tuple(live),
                    allow_unreachable=True,
                    accumulate_grad=False,
                )
            )
    except Exception as error:
        raise computation_failed(error) from error
    return [next(found) if target.requires_grad else None for target in targets]


def rows(root: torch.Tensor, targets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The Jacobian of one tensor by each target: the root's shape, then the target's. Zeros where independent."""
    size = root.numel()
    blocks: list[torch.Tensor | None] = [None] * len(targets)
    if root.requires_grad and size:
        widest = max([size, *(target.numel() for target in targets)]) * root.element_size()
        step = max(1, min(size, _CHUNK_BYTES // max(widest, 1)))
        if step == size:
            blocks = _pull_units(root, 0, size, targets)
        else:
            for start in range(0, size, step):
                stop = min(size, start + step)
                for place, pulled in enumerate(_pull_units(root, start, stop, targets)):
                    if pulled is not None:
                        block = blocks[place]
                        if block is None:
                            block = blocks[place] = pulled.new_zeros((size, *pulled.shape[1:]))
                        block[start:stop] = pulled
    return [
        root.new_zeros(root.shape + target.shape, dtype=target.dtype)
        if block is None
        else block.reshape(root.shape + target.shape)
        for block, target in zip(blocks, targets, strict=True)
    ]


def _pull_units(
    root: torch.Tensor, start: int, stop: int, targets: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Pull-backs of the unit cotangents start to stop, stacked; in one batch, or one by one where it cannot be."""
    units = root.new_zeros((stop - start, root.numel()))
    units[:, start:stop].fill_diagonal_(1)
    units = units.view((stop - start, *root.shape))
    if stop - start > 1:
        batched = without_batching_rules(lambda: _pull_together(root, units, targets))
        if batched is not None and _are_rows(batched, root, start, stop, targets):
            return batched
    singles = [pull_back([root], [unit], targets, retain_graph=True) for unit in units]
    return [None if rows[0] is None else torch.stack(rows).detach() for rows in zip(*singles, strict=True)]


def _pull_together(
    root: torch.Tensor, cotangents: torch.Tensor, targets: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Pull-backs of several cotangents, (B, *shape), in one batch; None where there is no dependence.

    The batch is functorch's, as torch.func.jacrev's is, whose bits these are, and not autograd's is_grads_batched: its
    older batching rules take two to fifty times as long. What torch.func.vmap does around it is left out, because it
    takes as long as the pull-back of a small function.
    """
    lazy_load_decompositions()
    count = len(cotangents)
    level = _functorch._vmap_increment_nesting(count, "error")
    try:
        pulled = pull_back([root], [_functorch._add_batch_dim(cotangents, 0, level)], targets, retain_graph=True)
        return [None if one is None else _functorch._remove_batch_dim(one, level, count, 0).detach() for one in pulled]
    finally:
        _functorch._vmap_decrement_nesting()


def _are_rows(
    blocks: Sequence[torch.Tensor | None], root: torch.Tensor, start: int, stop: int, targets: Sequence[torch.Tensor]
) -> bool:
    """Whether what was pulled back together is what is pulled back alone, by one more pull-back, of a sum of the units.

    Not every batching rule is right: that of cdist's backward gives other numbers (torch 2.13, in jacrev as well).
    Rows that are not finite cannot be told apart, and are not believed; nor are those of float8, which cannot add.
    """
    if any(torch.finfo(one.dtype).bits < 16 for one in (root, *targets)):
        return False
    weights = torch.linspace(0.5, 1.5, stop - start, dtype=root.dtype, device=root.device)
    cotangent = weights
    if stop - start < root.numel():
        cotangent = root.new_zeros(root.numel())
        cotangent[start:stop] = weights
    alone = pull_back([root], [cotangent.view(root.shape)], targets, retain_graph=True)
    for block, wanted in zip(blocks, alone, strict=True):
        if block is not None and wanted is not None:
            rows = block.reshape(stop - start, -1)
            error = torch.addmv(wanted.detach().reshape(-1), rows.T, weights.to(rows.dtype), beta=-1)
            # Rounding stays far below half of the digits; the numbers of a wrong rule differ in the first ones.
            room = 8 * torch.finfo(rows.dtype).eps ** 0.5 * norm(rows)
            if not norm(error) <= room:
                return False
    return True


def without_batching_rules(attempt: Callable[[], list[torch.Tensor | None]]) -> list[torch.Tensor | None] | None:
    """What the attempt returns, or None where vmap cannot batch one of the operators, so that a loop must do.

    A fault of the data raises in the loop again, where its message is about the caller's tensors and not vmap's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "performance drop because we have not yet implemented the batching rule"
        try:
            return attempt()
        except (Fault, RuntimeError):
            return None
