"""From votes to one mask: the most voted weights are pruned, exactly as many as asked.

FedPrLLM's server step (arXiv 2505.13547, step 4 of its algorithm) for all of its comparison
groups. The threshold of each group is found digit by digit on the counter's bit planes, from the
highest down: no votes are unpacked, and only weights tied at a threshold are looked at one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.config.pattern import GROUPS, Pattern, Rounding, pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.group_loops import compare_digit, narrow
from fedprune.methods.keys import MatrixKeys, RandomKeys
from fedprune.methods.rows import from_groups, full_groups, to_groups
from fedprune.methods.ties import drop_tied
from fedprune.methods.votes import VoteCounter, Words
from fedprune.wire.masks import BitMask

Counts = NDArray[np.int64]

TIES = ("magnitude", "index", "random")
ROUNDINGS = ("floor", "ceil")

_WORDS = 1 << 13  # words of a step over rows or columns: its planes stay in a core's cache
_WEIGHTS = 1 << 18  # weights of a step over N:M groups


@dataclass(frozen=True)
class Rule:
    """How votes become a mask.

    Parameters
    ----------
    group : str
        Comparison group of an unstructured mask: 'layer', 'row' or 'column'.
    ties : str
        Which of equally voted weights is pruned first: 'magnitude' the smaller |W|, of equals
        the lower index; 'index' the lower index, as published for rows and columns; 'random'
        any, by `seed`, as published for layers.
    majority_floor : bool
        Prune by votes only what more than half of them are for; what is then missing to the
        group's count is filled with the smallest |W| of the rest, of equals the lower index.
        Without it a third of the votes can push out weights that all others keep.
    seed : int
        Of random ties, non-negative; give each linear its own.
    rounding : {"floor", "ceil"}
        Of an unstructured mask's count in each group.

    Raises
    ------
    ConfigError
        If group, ties, rounding or seed are none of these.
    """

    group: str = "layer"
    ties: str = "magnitude"
    majority_floor: bool = False
    seed: int = 0
    rounding: Rounding = "floor"

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

    Parameters
    ----------
    votes : VoteCounter
        Votes of all clients.
    sparsity : float
        Share to prune, 0 <= sparsity < 1: ``pruned_count(size, sparsity, rule.rounding)`` of
        each group.
    magnitude : NDArray[np.float32]
        |W|, flat, shape (d_out * d_in,), without NaN.
    shape : tuple of int
        (d_out, d_in) of the weight.
    rule : Rule
        Group, ties, majority floor and rounding.

    Raises
    ------
    ModelError
        If the sizes do not fit each other.
    ConfigError
        If the sparsity is out of range.
    """
    _check_sizes(votes, magnitude, shape)
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(f"`sparsity` must be at least 0 and below 1, got {sparsity}.")
    d_out, d_in = shape
    groups, size = {"layer": (1, votes.numel), "row": (d_out, d_in), "column": (d_in, d_out)}[
        rule.group
    ]
    keeps = votes.keep_planes()
    planes = [to_groups(plane, shape, rule.group) for plane in keeps]
    rest = None
    if rule.majority_floor:
        rest = to_groups(_not_majority(votes), shape, rule.group)
    tied = full_groups(groups, size)
    left = np.full(groups, pruned_count(size, sparsity, rule.rounding), dtype=np.int64)
    survivors = _split(planes, rest, tied, left)
    _resolve(tied, left, rest, MatrixKeys(magnitude, shape, rule.group), rule)
    return BitMask(from_groups(survivors | tied, shape, rule.group), shape)


def select_nm(
    votes: VoteCounter,
    pattern: Pattern,
    magnitude: NDArray[np.float32],
    shape: tuple[int, int],
    rule: Rule,
) -> BitMask:
    """Return the mask that keeps the N least voted weights of every M consecutive inputs.

    Parameters are those of `select`; the rule's group is not looked at.

    Raises
    ------
    ConfigError
        If the pattern is unstructured.
    ModelError
        If the sizes do not fit each other, or M does not divide d_in.
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
    random = RandomKeys(rule.seed)
    step = max(_WEIGHTS // m, 1) * m
    for start in range(0, votes.numel, step):
        stop = min(start + step, votes.numel)
        keys = _order(votes.counts(start, stop), votes.total, magnitude[start:stop], rule, random)
        mask[start:stop].reshape(-1, m)[:] = (_ranks(keys.reshape(-1, m).T) >= m - n).T
    return BitMask.from_bool(mask.reshape(shape))


def _not_majority(votes: VoteCounter) -> Words:
    """Return the bits of the weights that at most half of the votes prune; padding is any."""
    half = (votes.total + 1) // 2  # kept by as many: found from the highest digit down
    more = np.zeros((votes.numel + 63) // 64, dtype=np.uint64)
    equal = ~more
    planes = votes.keep_planes()
    for digit in reversed(range(len(planes))):
        compare_digit(planes[digit], bool(half >> digit & 1), more, equal)
    return more | equal


def _split(planes: Sequence[Words], rest: Words | None, tied: Words, left: Counts) -> Words:
    """Return each group's sure survivors.

    Parameters
    ----------
    planes : sequence of Words
        Binary digits of the votes to keep, lowest first, shape (groups, words) each.
    rest : Words or None
        What no majority prunes: it counts as kept by more than all, so it is chosen last, all tied.
    tied : Words
        All weights; only those tied at the group's threshold are left, in place.
    left : NDArray[np.int64]
        Weights to prune in each group, shape (groups,); in the end, of the tied.
    """
    survivors = np.zeros_like(tied)
    step = max(_WORDS // tied.shape[1], 1)
    scratch = np.empty_like(tied[:step])
    for start in range(0, tied.shape[0], step):
        part = slice(start, start + step)
        ties = tied[part]
        size = np.bitwise_count(ties).sum(axis=1, dtype=np.int64)
        for plane in reversed(planes):
            digit = plane[part]
            if rest is not None:
                digit = np.bitwise_or(digit, rest[part], out=scratch[: len(ties)])
            narrow(digit, ties, survivors[part], left[part], size)
    return survivors


def _resolve(tied: Words, left: Counts, rest: Words | None, keys: MatrixKeys, rule: Rule) -> None:
    """Clear the tied weights that are pruned; those without a majority go by magnitude."""
    if rest is not None and rule.ties != "magnitude":
        # All of a group's ties have a majority, or none has.
        filled = (tied & rest).any(axis=1)
        drop_tied(tied, np.where(filled, left, 0), keys)
        left = np.where(filled, 0, left)
    orders = {"magnitude": keys, "index": None, "random": RandomKeys(rule.seed)}
    drop_tied(tied, left, orders[rule.ties])


def _order(
    votes: NDArray[np.uint16 | np.uint32],
    total: int,
    magnitude: NDArray[np.float32],
    rule: Rule,
    random: RandomKeys,
) -> NDArray[np.uint64]:
    """Return keys that sort weights as they are pruned; equal ones go by index."""
    keeps = (total - votes.astype(np.int64)).astype(np.uint64)
    # Bit patterns of non-negative floats sort as the floats do: one key holds both.
    codes = magnitude.view(np.uint32)
    ties = codes
    if rule.ties == "index":
        ties = np.zeros_like(codes)
    elif rule.ties == "random":
        ties = random.draw(codes.size)
    if rule.majority_floor:
        rest = 2 * keeps >= total
        keeps[rest] = total
        ties = np.where(rest, codes, ties)
    return keeps << np.uint64(32) | ties


def _ranks(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return each key's rank within its group, from 0; of equals the first has the lower rank.

    Parameters
    ----------
    keys : NDArray[np.uint64]
        Shape (m, groups).
    """
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
