"""SparseGPT's column loop on the GPU: one Triton program takes some rows through a whole block.

The rows of a block of columns stay in registers while its columns are pruned one after the other.
Every operation is that of `fedprune.pruning.elimination`, in its order: equal bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from fedprune.pruning.triton_launch import gpu_jit, launch

_TILE = 2048  # weights of one program


def eliminate(
    weights: Tensor,
    errors: Tensor,
    keep: Tensor,
    upper: Tensor,
    start: int,
    pattern: tuple[int, int],
) -> None:
    """Zero the pruned weights of a block and let its later columns make up for each.

    Parameters
    ----------
    weights : Tensor
        The whole matrix, float32, shape (d_out, d_in), contiguous; changed within the block.
    errors : Tensor
        Shape (d_out, width), contiguous; receives ``w / U_jj`` of the pruned, zero of the
        survivors.
    keep : Tensor
        bool, shape (d_out, d_in), contiguous; the survivors. Written by an N:M pattern, else read.
    upper : Tensor
        The factor's diagonal block, shape (width, width), contiguous.
    start : int
        First column of the block.
    pattern : tuple[int, int]
        (n, m): n survive of every m columns, chosen when they are reached; m divides the width.
        (1, 1) where `keep` is given.
    """
    rows, width = errors.shape
    columns = triton.next_power_of_2(width)
    tile = max(_TILE // columns, 1)
    of = (weights, errors, keep, upper, upper.diagonal().reciprocal())
    sizes = (rows, weights.shape[1], start, width)
    launch(
        eliminate_kernel,
        triton.cdiv(rows, tile),
        *of,
        *sizes,
        N=pattern[0],
        M=pattern[1],
        ROWS=tile,
        COLUMNS=columns,
    )


@gpu_jit
def _chosen(
    scores: tl.tensor, column: tl.tensor, first: tl.tensor, PRUNE: tl.constexpr, M: tl.constexpr
) -> tl.tensor:
    """Flag those of the M columns from `first` on with at least PRUNE lower scores in their row."""
    lower = tl.zeros(scores.shape, tl.int32)
    for lane in tl.static_range(M):
        other = first + lane
        of = tl.sum(tl.where(column == other, scores, 0.0), axis=1)[:, None]
        lower += ((of < scores) | ((of == scores) & (other < column))).to(tl.int32)
    return lower >= PRUNE


@gpu_jit
def eliminate_kernel(  # noqa: PLR0913  a kernel takes plain pointers and numbers
    weights: tl.tensor,
    errors: tl.tensor,
    keep: tl.tensor,
    upper: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    d_in: tl.tensor,
    start: tl.tensor,
    width: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Take some rows through all columns of a block."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    place = row * d_in + start + column
    tile = tl.load(weights + place, mask=inside, other=0.0)
    kept = tl.load(keep + place, mask=inside, other=1) != 0
    scale = tl.load(scales + column, mask=column < width, other=1.0)
    lost = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j in range(0, width):
        if M > 1:
            if j % M == 0:
                group = (column >= j) & (column < j + M)
                kept = tl.where(group, _chosen(tl.abs(tile) * scale, column, j, M - N, M), kept)
        pruned = tl.sum(tl.where((column == j) & ~kept, tile, 0.0), axis=1)
        error = tl.div_rn(pruned, tl.load(upper + j * width + j))[:, None]
        later = (column > j) & (column < width)
        tile -= error * tl.load(upper + j * width + column, mask=later, other=0.0)
        lost = tl.where(column == j, error, lost)
    tl.store(weights + place, tl.where(kept, tile, 0.0), mask=inside)
    tl.store(errors + row * width + column, lost, mask=inside)
    if M > 1:
        tl.store(keep + place, kept, mask=inside)
