"""From votes to one mask: the most voted weights are pruned, exactly as many as asked.

FedPrLLM's server step (arXiv 2505.13547, step 4 of its algorithm) for all of its comparison
groups. A histogram of a group's votes says at which count pruning ends; only the weights tied
there are ranked, by |W|, by index or at random.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.config.pattern import GROUPS, Pattern, Rounding, pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.votes import VoteCounter, Votes
from fedprune.wire.masks import BitMask

TIES = ("magnitude", "index", "random")
ROUNDINGS = ("floor", "ceil")

_WEIGHTS = 1 << 18  # weights of a step: what is made of them stays in a core's cache
_BINS = 1 << 12  # votes up to which a histogram is the shortest way to a threshold

Keys = NDArray[np.float32] | NDArray[np.uint32]


@dataclass(frozen=True)
class Rule:
    """How votes become a mask.

    Raises ConfigError if group, ties, rounding or seed are none of these.
    """

    group: str = "layer"  # comparison group of an unstructured mask: 'layer', 'row' or 'column'
    # which of equally voted weights is pruned first: 'magnitude' the smaller |W|, of equals the
    # lower index; 'index' the lower index, as published for rows and columns; 'random' any, by
    # `seed`, as published for layers
    ties: str = "magnitude"
    # prune by votes only what more than half of them are for; what is then missing to the group's
    # count is filled with the smallest |W| of the rest, of equals the lower index. Without it a
    # third of the votes can push out weights that all others keep.
    majority_floor: bool = False
    seed: int = 0  # of random ties, non-negative; give each linear its own
    rounding: Rounding = "floor"  # of an unstructured mask's count in each group

    def __post_init__(self) -> None:
        """Refuse rules that do not exist."""
        for key, value, known in (
            ("group", self.group, GROUPS),
            ("ties", self.ties, TIES),
            ("rounding", self.rounding, ROUNDINGS),
        ):
            if value not in known:
                options = ", ".join(f"'{option}'" for option in known)
                raise ConfigError(f"`strategy.{key}` must be one of {options}, got '{value}'.")
        if self.seed < 0:
            raise ConfigError(f"`seed` must be at least 0, got {self.seed}.")


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
    mask = np.empty(groups, dtype=np.bool_)
    keeps, weights, survives = _keeps(votes, 0, votes.numel, rule), magnitude, mask
    keeps, weights = keeps.reshape(groups), weights.reshape(groups)
    if rule.group == "column":
        keeps, weights, survives = np.ascontiguousarray(keeps.T), weights.T, mask.T
    count = pruned_count(keeps.shape[1], sparsity, rule.rounding)
    random, filled = _Random(rule.seed), _half(votes) if rule.majority_floor else -1
    step = max(_WEIGHTS // keeps.shape[1], 1)
    for start in range(0, len(keeps), step):
        part, kept = keeps[start : start + step], survives[start : start + step]
        limits = _limits(part, min(count, keeps.shape[1] - 1), votes.total)
        np.greater_equal(part, limits, out=kept)
        tied = part == limits
        left = count - np.count_nonzero(part < limits, axis=1)
        for group in left.nonzero()[0].tolist():
            places = tied[group].nonzero()[0]
            if rule.ties == "index" and limits[group, 0] != filled:
                pruned = places[: left[group]]
            elif rule.ties == "random" and limits[group, 0] != filled:
                pruned = places[_lowest(random.draw(places.size), int(left[group]))]
            else:
                pruned = places[_lowest(weights[start + group][places], int(left[group]))]
            kept[group][pruned] = False
    return BitMask.from_bool(mask.reshape(shape))


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
    mask = np.empty(votes.numel, dtype=np.bool_)
    random = _Random(rule.seed)
    step = max(_WEIGHTS // m, 1) * m
    for start in range(0, votes.numel, step):
        stop = min(start + step, votes.numel)
        keeps = _keeps(votes, start, stop, rule)
        # Bit patterns of non-negative floats sort as the floats do: one key holds both.
        codes = magnitude[start:stop].view(np.uint32)
        ties = {"magnitude": codes, "index": np.zeros_like(codes)}.get(rule.ties)
        if ties is None:
            ties = random.draw(codes.size)
        if rule.majority_floor:
            ties = np.where(keeps == _half(votes), codes, ties)
        keys = keeps.astype(np.uint64) << np.uint64(32) | ties
        mask[start:stop].reshape(-1, m)[:] = (_ranks(keys.reshape(-1, m).T) >= m - n).T
    return BitMask.from_bool(mask.reshape(shape))


class _Random:
    """Numbers that depend on the seed alone: NumPy keeps a generator's raw output the same."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def draw(self, count: int) -> NDArray[np.uint32]:
        return (self._stream.random_raw(count) >> np.uint64(32)).astype(np.uint32)


def _half(votes: VoteCounter) -> int:
    """Return the votes to keep from which on no majority prunes."""
    return (votes.total + 1) // 2


def _keeps(votes: VoteCounter, start: int, stop: int, rule: Rule) -> Votes:
    """Return votes to keep; with a majority floor what no majority prunes has the same number."""
    keeps = votes.keeps(start, stop)
    return np.minimum(keeps, _half(votes), out=keeps) if rule.majority_floor else keeps


def _limits(keeps: Votes, count: int, most: int) -> Votes:
    """Return each group's lowest number with more than `count` at or below, shape (groups, 1)."""
    groups, size = keeps.shape
    if most > _BINS:
        limits: Votes = np.partition(keeps, count, axis=1)[:, count : count + 1]
        return limits
    bins, step = most + 1, max(_WEIGHTS // groups, 1)
    found, offsets = np.zeros(groups * bins, np.int64), np.arange(groups)[:, np.newaxis] * bins
    for start in range(0, size, step):
        values = keeps[:, start : start + step] + offsets
        found += np.bincount(values.ravel(), minlength=found.size)
    below = found.reshape(groups, bins).cumsum(axis=1) <= count
    limits = np.count_nonzero(below, axis=1)[:, np.newaxis].astype(keeps.dtype)
    return limits


def _lowest(keys: Keys, count: int) -> NDArray[np.bool_]:
    """Flag the `count` lowest keys, at least one, of equals the first."""
    limit = np.partition(keys, count - 1)[count - 1]
    lowest: NDArray[np.bool_] = keys <= limit
    beyond = np.count_nonzero(lowest) - count
    if beyond:
        lowest[np.flatnonzero(keys == limit)[-beyond:]] = False
    return lowest


def _ranks(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return each key's rank in its group, shape (m, groups); of equals the first is lower."""
    keys = np.ascontiguousarray(keys)
    ranks = np.zeros(keys.shape, dtype=np.int32)
    for lane in range(keys.shape[0]):
        for later in range(lane + 1, keys.shape[0]):
            first = keys[lane] <= keys[later]
            ranks[later] += first
            ranks[lane] += ~first
    return ranks


def _check_sizes(
    votes: VoteCounter, magnitude: NDArray[np.float32], shape: tuple[int, int]
) -> None:
    if not votes.numel == shape[0] * shape[1] == magnitude.size or magnitude.ndim != 1:
        raise ModelError(
            f"Votes of {votes.numel} weights do not fit a {shape[0]}x{shape[1]} weight "
            f"with magnitudes of shape {magnitude.shape}."
        )
