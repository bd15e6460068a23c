"""From votes to one mask: the most voted weights are pruned, exactly as many as asked.

FedPrLLM's server step (arXiv 2505.13547, step 4 of its algorithm) for all of its comparison
groups. Compiled loops find the count of votes at which a group's pruning ends, and rank only the
weights tied there, by |W|, by index or at random.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.config.pattern import Pattern, Rounding, pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.jit import jit
from fedprune.methods.votes import VoteCounter, Votes
from fedprune.pruning.selection_kernels import find_threshold
from fedprune.wire.masks import BitMask

Keys = NDArray[np.uint32]
Values = TypeVar("Values", Votes, Keys, NDArray[np.bool_])


@dataclass(frozen=True)
class Rule:
    """How votes become a mask."""

    # comparison group of an unstructured mask
    group: Literal["layer", "row", "column"] = "layer"
    # which of equally voted weights is pruned first: 'magnitude' the smaller |W|, of equals the
    # lower index; 'index' the lower index, as published for rows and columns; 'random' any, by
    # `seed`, as published for layers
    ties: Literal["magnitude", "index", "random"] = "magnitude"
    # prune by votes only what more than half of them are for; what is then missing to the group's
    # count is filled with the smallest |W| of the rest, of equals the lower index. Without it a
    # third of the votes can push out weights that all others keep.
    majority_floor: bool = False
    seed: int = 0  # of random ties, non-negative; give each linear its own
    rounding: Rounding = "floor"  # of an unstructured mask's count in each group


def select(
    votes: VoteCounter,
    sparsity: float,
    magnitude: NDArray[np.float32],
    shape: tuple[int, int],
    rule: Rule,
) -> BitMask:
    """Return the mask that prunes the most voted weights of each comparison group.

    `sparsity`: share to prune, 0 <= sparsity < 1: ``pruned_count(size, sparsity, rule.rounding)``
    of each group. `magnitude`: |W|, flat, shape (d_out * d_in,), without NaN. `shape`: (d_out,
    d_in) of the weight. Raises ModelError if the sizes do not fit each other. Raises ConfigError if
    the sparsity is out of range.
    """
    _check_sizes(votes, magnitude, shape)
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(f"`sparsity` must be at least 0 and below 1, got {sparsity}.")
    groups = {"layer": (1, votes.numel), "row": shape, "column": shape}[rule.group]
    keeps, codes = _keeps(votes, rule).reshape(groups), magnitude.view(np.uint32).reshape(groups)
    if rule.group == "column":
        keeps, codes = _transposed(keeps), _transposed(codes)
    count = pruned_count(keeps.shape[1], sparsity, rule.rounding)
    limits = find_limits(keeps, count, votes.total)
    filled, keys = _half(votes) if rule.majority_floor else -1, codes[0, :0]
    if rule.ties != "magnitude":
        ranked = (limits[:, 1] > 0) & (limits[:, 0] != filled)
        ties = keeps[ranked] == limits[ranked, :1].astype(keeps.dtype)
        keys = _keys(rule, int(np.count_nonzero(ties)))
    survives = prune_tied(keeps, limits, codes, filled, keys)
    if rule.group == "column":
        survives = _transposed(survives)
    return BitMask.from_bool(survives.reshape(shape))


def select_nm(
    votes: VoteCounter,
    pattern: Pattern,
    magnitude: NDArray[np.float32],
    shape: tuple[int, int],
    rule: Rule,
) -> BitMask:
    """Return the mask that keeps the N least voted weights of every M consecutive inputs.

    Parameters are those of `select`; the rule's group is not looked at.

    Raises ConfigError if the pattern is unstructured. Raises ModelError if the sizes do not fit
    each other, or M does not divide d_in.
    """
    _check_sizes(votes, magnitude, shape)
    n, m = pattern.n, pattern.m
    if n is None or m is None:
        raise ConfigError(
            "`pruner.pattern` must be 'N:M' for an N:M selection, got 'unstructured'."
        )
    if shape[1] % m:
        raise ModelError(f"Pattern '{pattern}' needs d_in divisible by {m}, got {shape[1]}.")
    groups = (votes.numel // m, m)
    keeps, codes = _keeps(votes, rule).reshape(groups), magnitude.view(np.uint32).reshape(groups)
    keys = codes if rule.ties == "magnitude" else _keys(rule, votes.numel).reshape(groups)
    if rule.majority_floor:
        keys = np.where(keeps == _half(votes), codes, keys)
    return BitMask.from_bool(prune_ranked(keeps, keys, m - n).reshape(shape))


def _half(votes: VoteCounter) -> int:
    """Return the votes to keep from which on no majority prunes."""
    return (votes.total + 1) // 2


def _keeps(votes: VoteCounter, rule: Rule) -> Votes:
    """Return votes to keep; with a majority floor what no majority prunes has the same number."""
    keeps = votes.keeps(0, votes.numel)
    return np.minimum(keeps, _half(votes), out=keeps) if rule.majority_floor else keeps


def _keys(rule: Rule, count: int) -> Keys:
    """Return what ranks ties by index or at random; NumPy keeps a generator's raw output."""
    if rule.ties == "index":
        return np.zeros(count, dtype=np.uint32)
    return (np.random.PCG64(rule.seed).random_raw(count) >> np.uint64(32)).astype(np.uint32)


def _transposed(values: Values) -> Values:
    transposed: Values = torch.from_numpy(values).t().contiguous().numpy()
    return transposed


def _check_sizes(
    votes: VoteCounter, magnitude: NDArray[np.float32], shape: tuple[int, int]
) -> None:
    if not votes.numel == shape[0] * shape[1] == magnitude.size or magnitude.ndim != 1:
        raise ModelError(
            f"Votes of {votes.numel} weights do not fit a {shape[0]}x{shape[1]} weight "
            f"with magnitudes of shape {magnitude.shape}."
        )


@jit
def find_limits(keeps: Votes, count: int, most: int) -> NDArray[np.int64]:
    """Return where pruning ends in each group of votes to keep, shape (groups, 2).

    All weights below the first number are pruned, and as many as the second says of those equal to
    it. `keeps`: at most `most`, shape (groups, size).
    """
    limits = np.empty((keeps.shape[0], 2), np.int64)
    for group in range(keeps.shape[0]):
        limits[group] = find_threshold(keeps[group], count, (0, most), keeps.shape[1])
    return limits


@jit
def prune_tied(
    keeps: Votes, limits: NDArray[np.int64], codes: Keys, filled: int, keys: Keys
) -> NDArray[np.bool_]:
    """Return which weights survive, shape (groups, size): of ties those of the highest codes.

    `limits`: as :func:`find_limits` returns them. `keys`: rank the ties of all groups, one after
    the other, in place of the codes; not where the limit is `filled`. Of equal ones the last stay.
    """
    survives = np.empty(keeps.shape, np.bool_)
    tied = np.empty(keeps.shape[1] + 1, codes.dtype)
    used = 0
    for group in range(keeps.shape[0]):
        limit, left = keeps.dtype.type(limits[group, 0]), limits[group, 1]
        if left == 0:
            survives[group] = keeps[group] >= limit
            continue
        count = _gather(keeps[group], limit, codes[group], tied)
        if keys.size and limit != filled:
            tied[:count] = keys[used : used + count]
            used += count
        bracket = int(tied[:count].min()), int(tied[:count].max())
        last, left = find_threshold(tied[:count], left, bracket, count)
        _keep(keeps[group], limit, tied, tied.dtype.type(last), left, survives[group])
    return survives


@jit
def _gather(votes: Votes, limit: Any, codes: Keys, tied: Keys) -> int:
    """Copy the codes of what has `limit` votes; return how many there are."""
    count = 0
    for j in range(votes.size):  # no branch: what is not tied is overwritten
        tied[count] = codes[j]
        count += int(votes[j] == limit)
    return count


@jit
def _keep(
    votes: Votes, limit: Any, tied: Keys, last: Any, left: int, kept: NDArray[np.bool_]
) -> None:
    """Flag what has more than `limit` votes, or as many and a key above the `left` first `last`."""
    place = 0
    for j in range(votes.size):
        is_tied, key = votes[j] == limit, tied[place]
        pruned = (key < last) | ((key == last) & (left > 0))
        kept[j] = (votes[j] > limit) | (is_tied & ~pruned)
        left -= int(is_tied & (key == last))
        place += int(is_tied)


@jit
def prune_ranked(keeps: Votes, keys: Keys, count: int) -> NDArray[np.bool_]:
    """Return which weights survive, all but `count` of each group: those of the highest votes.

    Of equal votes those of the highest keys, of equal keys the last ones. For small groups.
    """
    survives = np.empty(keeps.shape, np.bool_)
    wide = np.empty(keeps.shape[1], np.uint64)
    for group in range(keeps.shape[0]):
        for j in range(wide.size):
            wide[j] = np.uint64(keeps[group, j]) << np.uint64(32) | np.uint64(keys[group, j])
        for j in range(wide.size):
            lower = 0
            for other in range(j):
                lower += wide[other] <= wide[j]
            for other in range(j + 1, wide.size):
                lower += wide[other] < wide[j]
            survives[group, j] = lower >= count
    return survives
