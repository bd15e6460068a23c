"""SparseGPT: prune column after column, and let the columns to the right make up for the loss.

Frantar and Alistarh, arXiv 2301.00774, algorithm 1, with exact counts. Columns are visited in
order; a weight's score is ``|w| / U_jj``, the root of what its removal costs once the later weights
of its row have made up for it. The mask of a block of columns is chosen when the block is reached,
from weights that already make up for all that was pruned before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.config.count import pruned_count
from fedprune.errors import ModelError
from fedprune.pruning import select
from fedprune.pruning.hessian import Factor
from fedprune.pruning.spec import NOT_FINITE, MaskSpec, check_divides


@dataclass(frozen=True)
class _Sweep:
    """The state of one linear; matrices are (d_out, d_in) and contiguous.

    Parameters
    ----------
    weights : Tensor
        float32; what is pruned, and in the end the result.
    keep : Tensor
        bool; the survivors.
    errors : Tensor
        float32, shape (d_out, block size); of the block, ``w / U_jj`` of every weight that was
        pruned, zero of a survivor.
    upper : Tensor
        The factor, float32, shape (d_in, d_in).
    spec : MaskSpec
        What the mask must be.
    """

    weights: Tensor
    keep: Tensor
    errors: Tensor
    upper: Tensor
    spec: MaskSpec


def sparsegpt(
    weight: Tensor, factor: Factor, spec: MaskSpec, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask.

    Parameters
    ----------
    weight : Tensor
        Shape (d_out, d_in), any floating dtype, on the factor's device; not changed.
    factor : Factor
        Of the linear's inputs (see `fedprune.pruning.hessian.inverse_factor`). The weights of
        dead inputs become zero.
    spec : MaskSpec
        Sparsity, pattern and comparison group. The groups 'layer' and 'row' compare the weights of
        one block of columns: the blocks up to any one together lose exactly
        ``pruned_count(their weights, sparsity)``. Of equal scores the lower index is pruned first.
    block_size : int
        Columns of a block; rounded up to a multiple of M for an N:M pattern, which chooses the
        mask of M columns when they are reached.

    Returns
    -------
    tuple[Tensor, Tensor]
        The new weight, float32, exactly zero where pruned, and the mask, True = survives. The mask
        has `fedprune.pruning.spec.expected_survivors`.

    Raises
    ------
    ModelError
        If a weight is NaN or infinite, or an N:M pattern does not divide d_in.
    """
    check_divides(spec.pattern, weight.shape[1])
    size = spec.pattern.m or 1
    width = -(-block_size // size) * size
    weights = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    weights.copy_(weight.detach())
    weights[:, factor.dead] = 0.0
    keep = torch.ones_like(weights, dtype=torch.bool)
    upper = factor.upper.contiguous()
    for start in range(0, weights.shape[1], width):
        stop = min(start + width, weights.shape[1])
        errors = weights.new_empty(len(weights), stop - start)
        _prune_block(_Sweep(weights, keep, errors, upper, spec), start, stop)
        weights[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(NOT_FINITE)
    return weights, keep


def _prune_block(sweep: _Sweep, start: int, stop: int) -> None:
    """Choose the mask of a block of columns, prune it, and leave its errors."""
    if not sweep.spec.pattern.structured:
        sweep.keep[:, start:stop] = _survivors(sweep, start, stop)
    if select.runs_compiled(sweep.weights):
        _eliminate_compiled(sweep, start, stop)
    elif select.runs_triton(sweep.weights):
        _eliminate_on_gpu(sweep, start, stop)
    else:
        _eliminate(sweep, start, stop)


def _survivors(sweep: _Sweep, start: int, stop: int) -> Tensor:
    """Prune the lowest scores of a block: as many as bring the columns so far to their count."""
    sparsity, rows = sweep.spec.sparsity, len(sweep.weights)
    scores = _scores(sweep, start, stop)
    if sweep.spec.group == "column":
        groups, before, after = scores.t(), 0, rows
    elif sweep.spec.group == "row":
        groups, before, after = scores, start, stop
    else:
        groups, before, after = scores.reshape(1, -1), rows * start, rows * stop
    count = pruned_count(after, sparsity) - pruned_count(before, sparsity)
    keep = _prune_count(groups, count)
    return keep.t() if sweep.spec.group == "column" else keep.reshape(scores.shape)


def _prune_count(groups: Tensor, count: int) -> Tensor:
    """Take the fastest of the ways to prune the lowest of each group."""
    if select.runs_compiled(groups):
        from fedprune.pruning import kernels

        return kernels.prune_count(groups, count)
    if select.runs_triton(groups):
        from fedprune.pruning import triton_masks

        return triton_masks.prune_count(groups, count)
    return select.prune_count(groups, count)


def _scores(sweep: _Sweep, start: int, stop: int) -> Tensor:
    return sweep.weights[:, start:stop].abs() * sweep.upper.diagonal()[start:stop].reciprocal()


def _eliminate(sweep: _Sweep, start: int, stop: int) -> None:
    """Prune a block with tensor operations: the definition, and the path where no other is."""
    size = sweep.spec.pattern.m
    for j in range(start, stop):
        if size and j % size == 0:
            group = slice(j, j + size)
            sweep.keep[:, group] = select.prune_lowest(_scores(sweep, j, j + size), sweep.spec)
        column, kept, error = sweep.weights[:, j], sweep.keep[:, j], sweep.errors[:, j - start]
        error.copy_(column / sweep.upper[j, j]).masked_fill_(kept, 0.0)
        column.masked_fill_(~kept, 0.0)
        sweep.weights[:, j + 1 : stop].addr_(error, sweep.upper[j, j + 1 : stop], alpha=-1)


def _eliminate_compiled(sweep: _Sweep, start: int, stop: int) -> None:
    from fedprune.pruning.elimination import eliminate

    eliminate(
        sweep.weights.numpy(),
        sweep.errors.numpy(),
        sweep.keep.numpy(),
        sweep.upper[start:stop, start:stop].contiguous().numpy(),
        start,
        (sweep.spec.pattern.n or 1, sweep.spec.pattern.m or 1),
    )


def _eliminate_on_gpu(sweep: _Sweep, start: int, stop: int) -> None:
    from fedprune.pruning.triton_sparsegpt import eliminate

    eliminate(
        sweep.weights,
        sweep.errors,
        sweep.keep,
        sweep.upper[start:stop, start:stop].contiguous(),
        start,
        (sweep.spec.pattern.n or 1, sweep.spec.pattern.m or 1),
    )
