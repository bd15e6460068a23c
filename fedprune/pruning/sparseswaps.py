"""SparseSwaps: improve a mask by exchanging one survivor for one pruned weight of the same row.

arXiv 2512.10922. The loss of a row is ``z^T G z`` with z its pruned entries: what they would have
contributed to the linear's output. Every step takes the best of all exchanges, until the best one
gains next to nothing.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.jit import jit
from fedprune.pruning.groups import MaskSpec, check_divides
from fedprune.pruning.least_squares import conjugate_gradients, normalised
from fedprune.pruning.pruner import second_moments, sparse_change
from fedprune.pruning.selection import runs_compiled
from fedprune.pruning.statistics import Statistic
from fedprune.pruning.wanda import WandaPruner
from fedprune.wire.changes import SparseWeight

_TOLERANCE = 1e-3  # share of a row's loss that a swap must gain; lesser ones take most of the time
_COLUMNS = 1024  # of the moments that are float64 at a time
_PAIRS = 1 << 26  # of survivors and pruned weights that other devices look at in one step
_MAX_SWAPS = 100  # of a row; the gain of later ones is small
_STEPS, _GAIN = 100, 1e-5  # of conjugate gradients: at most, and until a step gains less


def sparseswaps(
    weight: Tensor,
    moments: Tensor,
    mask: Tensor,
    max_swaps: int,
    pattern: Pattern = UNSTRUCTURED,
) -> Tensor:
    """Return a mask of lower reconstruction error, with as many survivors in every row.

    `weight`: shape (d_out, d_in), any floating dtype; its values do not change. `moments`: sum over
    tokens of x x^T, float32, shape (d_in, d_in), on the weight's device. `mask`: bool, shape
    (d_out, d_in), where to start; not changed. `max_swaps`: of each row, at most. `pattern`: an N:M
    pattern lets weights change places within M consecutive inputs only. Returns bool, shape (d_out,
    d_in). Raises ModelError if an N:M pattern does not divide d_in.
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

    `weight`: dense, shape (d_out, d_in), any floating dtype. `moments`: sum over tokens of x x^T,
    shape (d_in, d_in), on the weight's device. `mask`: bool, shape (d_out, d_in), True = survives.
    `damping`: share of the mean diagonal that is added to the diagonal: holds values near the dense
    ones. Returns float32, shape (d_out, d_in), zero where pruned or where the input is dead. Raises
    ModelError if the moments are not finite.
    """
    problem = normalised(weight, moments, damping)
    start = problem.target.masked_fill(~mask, 0.0)
    return conjugate_gradients(problem, mask, start, _STEPS, _GAIN).div_(problem.scale)


def _swap_compiled(
    values: Tensor, gradients: Tensor, moments: Tensor, keep: Tensor, limits: tuple[int, int]
) -> None:
    """Swap rows on the CPU, in as many threads as torch uses."""
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


Row = NDArray[np.float64]
Swap = tuple[int, int, float]


@jit
def swap_rows(
    weights: NDArray[np.float64],
    gradients: NDArray[np.float64],
    moments: NDArray[np.float32],
    bounds: NDArray[np.float64],
    keep: NDArray[np.bool_],
    limits: tuple[int, int, float],
) -> None:
    """Swap a survivor for a pruned weight in each row while the loss falls.

    `weights`: shape (rows, d_in). `gradients`: G z of every row, shape (rows, d_in); kept up to
    date. `moments`: G, shape (d_in, d_in), symmetric. `bounds`: c, shape (d_in,): the largest
    correlation of an input with any other, at most 1. `keep`: shape (rows, d_in), the survivors;
    changed. `limits`: (swaps of a row at most, consecutive inputs within which a swap must stay,
    share of the row's loss that a swap must gain).
    """
    swaps, size, tolerance = limits
    for row in range(len(weights)):
        loss = 0.0
        for j in range(keep.shape[1]):
            if not keep[row, j]:
                loss += weights[row, j] * gradients[row, j]
        for _ in range(swaps):
            prune, restore, change = best_swap(
                weights[row], gradients[row], moments, bounds, keep[row], size
            )
            if not change < -tolerance * abs(loss):
                break
            keep[row, prune], keep[row, restore] = False, True
            loss += change
            for j in range(keep.shape[1]):
                gradients[row, j] += (
                    weights[row, prune] * moments[prune, j]
                    - weights[row, restore] * moments[restore, j]
                )


@jit
def best_swap(
    weights: Row,
    gradient: Row,
    moments: NDArray[np.float32],
    bounds: Row,
    keep: NDArray[np.bool_],
    size: int,
) -> Swap:
    """Return (survivor to prune, pruned to keep, change of the loss) of the best swap of a row.

    Arrays are one row of those of `swap_rows`. The change is zero where no swap lowers the loss.
    """
    costs, floors = np.empty(weights.size), np.empty(weights.size)
    for j in range(weights.size):
        square = weights[j] * weights[j] * moments[j, j]
        linear = 2.0 * weights[j] * gradient[j]
        costs[j] = square + linear if keep[j] else square - linear
        floors[j] = costs[j] - bounds[j] * square
    best = (-1, -1, 0.0)
    for start in range(0, weights.size, size):
        group = slice(start, start + size)
        kept, gone = _lowest(floors[group], keep[group])
        if kept < 0 or gone < 0:
            continue
        floor_kept, floor_gone = floors[start + kept], floors[start + gone]
        if not floor_kept + floor_gone < best[2]:
            continue
        kept, gone = _lowest(costs[group], keep[group])
        first = np.array([start + kept]), np.array([start + gone])
        best = _best_pair(weights, moments, costs, floors, first, best)
        survivors = _below(floors[group], keep[group], True, best[2] - floor_gone) + start
        pruned = _below(floors[group], keep[group], False, best[2] - floor_kept) + start
        best = _best_pair(weights, moments, costs, floors, (survivors, pruned), best)
    return best


@jit
def _lowest(values: Row, keep: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the places of the lowest value of a survivor and of a pruned weight, -1 for none."""
    kept, gone = -1, -1
    for j in range(values.size):
        if keep[j]:
            if kept < 0 or values[j] < values[kept]:
                kept = j
        elif gone < 0 or values[j] < values[gone]:
            gone = j
    return kept, gone


@jit
def _below(floors: Row, keep: NDArray[np.bool_], kept: bool, limit: float) -> NDArray[np.int64]:
    """Return the places of floors below a limit, of survivors or of pruned, lowest floor first."""
    places = np.empty(floors.size, np.int64)
    count = 0
    for j in range(floors.size):
        if keep[j] == kept and floors[j] < limit:
            places[count] = j
            count += 1
    found = places[:count]
    return found[np.argsort(floors[found])]


@jit
def _best_pair(
    weights: Row,
    moments: NDArray[np.float32],
    costs: Row,
    floors: Row,
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    best: Swap,
) -> Swap:
    """Return the best swap of these survivors and pruned, or the one already known.

    `places` are in the order of their floors, so that the first pair that cannot be better ends
    the search of a survivor, and of all.
    """
    kept, gone = places
    for u in kept:
        if gone.size == 0 or not floors[u] + floors[gone[0]] < best[2]:
            break
        for p in gone:
            if not floors[u] + floors[p] < best[2]:
                break
            change = costs[u] + costs[p] - _joint(weights, moments, u, p)
            if change < best[2]:
                best = (u, p, change)
    return best


@jit
def _joint(weights: Row, moments: NDArray[np.float32], u: int, p: int) -> float:
    return float(2.0 * weights[u] * weights[p] * moments[u, p])


@dataclass(frozen=True)
class SparseSwapsPruner:
    """Improve Wanda's mask by swaps within each row, then fit the values on it.

    SparseSwaps (arXiv 2512.10922) for the mask; least squares for the values.
    """

    damping: float
    name: str = "sparseswaps"
    needs: str = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = second_moments(self.name, weight, stats)
        start = torch.from_numpy(WandaPruner().prune(weight, found, spec).to_bool())
        start = start.to(weight.device)
        mask = sparseswaps(weight, found.moments, start, _MAX_SWAPS, spec.pattern)
        return sparse_change(weight, refit(weight, found.moments, mask, self.damping), mask)
