"""SparseGPT: prune column after column, and let the columns to the right make up for the loss.

Frantar and Alistarh, arXiv 2301.00774, algorithm 1, with exact counts. Columns are visited in
order; a weight's score is ``|w| / U_jj``, the root of what its removal costs once the later weights
of its row have made up for it. The mask of a block of columns is chosen when the block is reached,
from weights that already make up for all that was pruned before. Survivors may be rounded to a few
bits in the same sweep (section 3.5).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.grid import Grid, quantized
from fedprune.pruning.groups import NOT_FINITE, MaskSpec, check_divides
from fedprune.pruning.hessian import Factor
from fedprune.pruning.pruner import second_moments, sparse_change
from fedprune.pruning.statistics import Statistic
from fedprune.pruning.sweep import Codes, Sweep
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from fedprune.wire.quantized import QuantizedWeight


def sparsegpt(
    weight: Tensor, factor: Factor, spec: MaskSpec, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask.

    `weight`: shape (d_out, d_in), any floating dtype, on the factor's device; not changed.
    `factor`: of the linear's inputs (see `fedprune.pruning.hessian.inverse_factor`). The weights of
    dead inputs become zero. `spec`: sparsity, pattern and comparison group. The groups 'layer' and
    'row' compare the weights of one block of columns: the blocks up to any one together lose
    exactly ``pruned_count(their weights, sparsity)``. Of equal scores the lower index is pruned
    first. `block_size`: columns of a block; rounded up to a multiple of M for an N:M pattern, which
    chooses the mask of M columns when they are reached. Returns the new weight, float32, exactly
    zero where pruned, and the mask, True = survives, with exactly the survivors that `spec` says.
    Raises ModelError if a weight is NaN or infinite, or an N:M pattern does not divide d_in.
    """
    sweep = _swept(weight, factor, spec, block_size, None)
    return sweep.weights, sweep.keep


def sparsegpt_quantized(
    weight: Tensor, factor: Factor, spec: MaskSpec, grid: Grid, block_size: int = 128
) -> QuantizedWeight:
    """Return the weight pruned and its survivors quantised, in one sweep.

    A group's scale is chosen when the group is reached, before its mask: of all its weights.

    `weight`, `factor`, `spec`, `block_size`: as :func:`sparsegpt`; the block size is also rounded
    up to a multiple of a group. `grid`: bits, groups and symmetry. Zero is one of its numbers, so
    that pruned weights are zero. Raises ModelError as :func:`sparsegpt`, or if groups do not make
    up a row, or an N:M pattern a group.
    """
    size, m = grid.width(weight.shape[1]), spec.pattern.m or 1
    if size % m:
        raise ModelError(
            f"`pruner.group_size` must be a multiple of {m} with pattern '{spec.pattern}', got "
            f"{size}. Set pruner.group_size=null."
        )
    sweep = _swept(weight, factor, spec, block_size, grid)
    assert sweep.codes is not None
    mask = BitMask.from_bool(sweep.keep.cpu().numpy())
    return quantized(sweep.codes.codes, sweep.codes.fit, grid, weight.dtype, mask)


def _swept(
    weight: Tensor, factor: Factor, spec: MaskSpec, block_size: int, grid: Grid | None
) -> Sweep:
    check_divides(spec.pattern, weight.shape[1])
    weights = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    weights.copy_(weight.detach())
    weights[:, factor.dead] = 0.0
    keep = torch.ones_like(weights, dtype=torch.bool)
    codes = None if grid is None else Codes.empty(grid, weight.dtype, weights)
    sweep = Sweep(weights, keep, factor.upper.contiguous(), spec, codes)
    sweep.run(block_size)
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(NOT_FINITE)
    return sweep


@dataclass(frozen=True)
class SparseGptPruner:
    """Prune column by column and let the later columns make up for it.

    SparseGPT (Frantar and Alistarh, arXiv 2301.00774, algorithm 1; with a grid, section 3.5).
    """

    damping: float  # share of the mean squared input that is added to the diagonal
    block_size: int  # columns whose mask is chosen at once
    grid: Grid | None = None  # what survivors are rounded to; None leaves them floating
    name: str = "sparsegpt"
    needs: str = "moments"
    updates: bool = True

    def prune(
        self, weight: Tensor, stats: Statistic | None, spec: MaskSpec
    ) -> SparseWeight | QuantizedWeight:
        """Return survivors with new values, quantised with a grid (see `Pruner.prune`)."""
        factor = second_moments(self.name, weight, stats).factor(self.damping)
        if self.grid is not None:
            return sparsegpt_quantized(weight, factor, spec, self.grid, self.block_size)
        new, mask = sparsegpt(weight, factor, spec, self.block_size)
        return sparse_change(weight, new, mask)
