"""SparseSwaps: improve a mask by exchanging one survivor for one pruned weight of the same row.

arXiv 2512.10922. The loss of a row is ``z^T G z`` with z its pruned entries: what they would have
contributed to the linear's output. Every step takes the best of all exchanges, until the best one
gains next to nothing.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.pruning.least_squares import conjugate_gradients, normalised
from fedprune.pruning.select import runs_compiled
from fedprune.pruning.spec import check_divides

_TOLERANCE = 1e-3  # share of a row's loss that a swap must gain; lesser ones take most of the time
_COLUMNS = 1024  # of the moments that are float64 at a time
_PAIRS = 1 << 26  # of survivors and pruned weights that other devices look at in one step
_STEPS, _GAIN = 100, 1e-5  # of conjugate gradients: at most, and until a step gains less


def sparseswaps(
    weight: Tensor,
    moments: Tensor,
    mask: Tensor,
    max_swaps: int,
    pattern: Pattern = UNSTRUCTURED,
) -> Tensor:
    """Return a mask of lower reconstruction error, with as many survivors in every row.

    Parameters
    ----------
    weight : Tensor
        Shape (d_out, d_in), any floating dtype; its values do not change.
    moments : Tensor
        Sum over tokens of x x^T, float32, shape (d_in, d_in), on the weight's device.
    mask : Tensor
        bool, shape (d_out, d_in), where to start; not changed.
    max_swaps : int
        Of each row, at most.
    pattern : Pattern
        An N:M pattern lets weights change places within M consecutive inputs only.

    Returns
    -------
    Tensor
        bool, shape (d_out, d_in).

    Raises
    ------
    ModelError
        If an N:M pattern does not divide d_in.
    """
    check_divides(pattern, weight.shape[1])
    size = pattern.m or weight.shape[1]
    keep = mask.clone(memory_format=torch.contiguous_format)
    values = weight.detach().to(torch.float64)
    gradients = (values * ~keep) @ moments.to(torch.float64)
    if runs_compiled(weight):
        _swap_compiled(values, gradients, moments, keep, (max_swaps, size))
    else:
        rows = max(_PAIRS // (weight.shape[1] * size), 1)
        for start in range(0, len(keep), rows):
            part = slice(start, start + rows)
            _swap(values[part], gradients[part], keep[part], moments, size, max_swaps)
    return keep


def refit(weight: Tensor, moments: Tensor, mask: Tensor, damping: float) -> Tensor:
    """Return the values on a support that change the linear's outputs least.

    Parameters
    ----------
    weight : Tensor
        Dense, shape (d_out, d_in), any floating dtype.
    moments : Tensor
        Sum over tokens of x x^T, shape (d_in, d_in), on the weight's device.
    mask : Tensor
        bool, shape (d_out, d_in), True = survives.
    damping : float
        Share of the mean diagonal that is added to the diagonal: holds values near the dense ones.

    Returns
    -------
    Tensor
        float32, shape (d_out, d_in), zero where pruned or where the input is dead.

    Raises
    ------
    ModelError
        If the moments are not finite.
    """
    problem = normalised(weight, moments, damping)
    start = problem.target.masked_fill(~mask, 0.0)
    return conjugate_gradients(problem, mask, start, _STEPS, _GAIN).div_(problem.scale)


def _swap_compiled(
    values: Tensor, gradients: Tensor, moments: Tensor, keep: Tensor, limits: tuple[int, int]
) -> None:
    """Swap rows on the CPU, in as many threads as torch uses."""
    from fedprune.pruning.swap_loops import swap_rows

    shared = moments.to(torch.float32).contiguous().numpy(), _correlations(moments).numpy()
    rows = max(len(keep) // (8 * torch.get_num_threads()), 1)

    def task(start: int) -> None:
        own, gradient, kept = (
            tensor[start : start + rows].numpy() for tensor in (values, gradients, keep)
        )
        swap_rows(own, gradient, *shared, kept, (*limits, _TOLERANCE))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(task, range(0, len(keep), rows)))


def _correlations(moments: Tensor) -> Tensor:
    """Return the largest correlation of each input with any other, float64, shape (d_in,)."""
    norms = moments.diagonal().to(torch.float64).sqrt()
    largest = []
    for start in range(0, len(moments), _COLUMNS):
        rows = slice(start, start + _COLUMNS)
        found = moments[rows].to(torch.float64).abs().div_(norms).div_(norms[rows, None])
        found.diagonal(start).zero_()
        largest.append(found.nan_to_num_(posinf=0.0).amax(1))
    return torch.cat(largest).mul_(1 + 1e-6)  # an upper bound in spite of rounding


def _swap(
    values: Tensor, gradients: Tensor, keep: Tensor, moments: Tensor, size: int, swaps: int
) -> None:
    """Swap in all rows at once with tensor operations: the definition, and other devices' path."""
    rows, columns = keep.shape
    groups = columns // size
    places = torch.arange(columns, device=keep.device).view(groups, size)
    joint = 2.0 * moments[places[:, :, None], places[:, None, :]].to(torch.float64)
    square = values.square() * moments.diagonal()
    by_group = values.view(rows, groups, size)
    every = torch.arange(rows, device=keep.device)
    for _ in range(swaps):
        linear = 2.0 * values * gradients
        kept = (square + linear).masked_fill_(~keep, torch.inf).view_as(by_group)
        gone = (square - linear).masked_fill_(keep, torch.inf).view_as(by_group)
        pairs = by_group[..., :, None] * by_group[..., None, :] * -joint
        pairs += kept[..., :, None]
        pairs += gone[..., None, :]
        change, place = pairs.flatten(1).min(1)
        group, place = place // size**2, place % size**2
        prune, restore = group * size + place // size, group * size + place % size
        better = change < -_TOLERANCE * (values * gradients * ~keep).sum(1).abs()
        if not bool(better.any()):
            break
        keep[every, prune] ^= better
        keep[every, restore] ^= better
        moved = values[every, prune, None] * moments[prune].to(torch.float64)
        moved -= values[every, restore, None] * moments[restore].to(torch.float64)
        gradients += moved * better[:, None]
