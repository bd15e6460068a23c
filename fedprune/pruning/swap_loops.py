"""Compiled loops of SparseSwaps: the best swap of a row without looking at all pairs.

With w a row, z the part of it that is pruned and g = G z, pruning a survivor u and keeping a
pruned p instead changes the loss z^T G z by

    a_u + b_p - 2 w_u w_p G_up,   a_u = 2 w_u g_u + w_u^2 G_uu,   b_p = w_p^2 G_pp - 2 w_p g_p.

Where c_j bounds the correlations of input j with all others, the last term is at most
``c_u w_u^2 G_uu + c_p w_p^2 G_pp`` in size. Pairs whose sum so bounded is not below the best change
found so far need not be looked at; that leaves some per cent of them, and the optimum is exact.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

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

    Parameters
    ----------
    weights : NDArray[np.float64]
        Shape (rows, d_in).
    gradients : NDArray[np.float64]
        G z of every row, shape (rows, d_in); kept up to date.
    moments : NDArray[np.float32]
        G, shape (d_in, d_in), symmetric.
    bounds : NDArray[np.float64]
        c, shape (d_in,): the largest correlation of an input with any other, at most 1.
    keep : NDArray[np.bool_]
        Shape (rows, d_in), the survivors; changed.
    limits : tuple[int, int, float]
        (swaps of a row at most, consecutive inputs within which a swap must stay, share of the
        row's loss that a swap must gain).
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
