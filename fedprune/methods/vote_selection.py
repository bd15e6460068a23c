"""From votes to one mask: the most voted weights are pruned, exactly as many as asked.

FedPrLLM's server step (arXiv 2505.13547, step 4 of its algorithm) for all of its comparison groups.
Votes stay the bit planes that they were counted in, 64 weights a word: digit by digit they tell
where a group's pruning ends, and only what is tied there is ranked, by |W|, by index or at random.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.config.pattern import Pattern, Rounding, pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.tie_kernels import Codes, Words, at_least, narrow, prune_ties
from fedprune.methods.votes import VoteCounter
from fedprune.pruning.groups import check_divides
from fedprune.pruning.selection_kernels import keep_ranked
from fedprune.wire.masks import BitMask, packed_size

Number = TypeVar("Number", bound=np.generic)


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
    _check(votes, magnitude, shape)
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(f"`sparsity` must be at least 0 and below 1, got {sparsity}.")
    size = {"layer": votes.numel, "row": shape[1], "column": shape[0]}[rule.group]
    in_place = rule.group == "layer" or (rule.group == "row" and size % 64 == 0)
    codes = _lines(magnitude.view(np.uint32), size, rule)
    words = len(codes), codes.shape[1] // 64
    if in_place:
        planes = votes.planes().reshape(-1, *words)
    else:
        keeps = _lines(votes.keeps(0, votes.numel), size, rule)
        digits = [keeps & (1 << digit) for digit in range(votes.total.bit_length())]
        planes = np.array([np.packbits(d, bitorder="little") for d in digits], np.uint8)
        planes = planes.view(np.uint64).reshape(-1, *words)
    tied = np.full(words, ~np.uint64(0))
    tied[:, -1] >>= np.uint64(-size % 64)
    left = np.full(len(codes), pruned_count(size, sparsity, rule.rounding))
    rest = at_least(planes, votes.half) if rule.majority_floor else np.zeros_like(tied)
    kept = narrow(planes, rest, tied, left)
    if rule.ties != "magnitude":
        others = np.where((tied & rest).any(axis=1), 0, left)
        left -= others
        keys = np.zeros_like(codes)
        if rule.ties == "random":
            ties = _bool(tied * (others > 0)[:, np.newaxis])
            keys[ties] = _keys(rule, int(np.count_nonzero(ties)))
        prune_ties(tied, keys, others)
    prune_ties(tied, codes, left)
    kept |= tied
    if in_place:
        return BitMask(kept.view(np.uint8).reshape(-1)[: packed_size(votes.numel)], shape)
    flags = _bool(kept)[:, :size]
    return BitMask.from_bool(_turned(flags) if rule.group == "column" else flags)


def select_nm(
    votes: VoteCounter,
    pattern: Pattern,
    magnitude: NDArray[np.float32],
    shape: tuple[int, int],
    rule: Rule,
) -> BitMask:
    """Return the mask that keeps the N least voted weights of every M consecutive inputs.

    Parameters are those of `select`; the rule's group is not looked at. Raises ConfigError if the
    pattern is unstructured. Raises ModelError if the sizes do not fit each other, or M does not
    divide d_in.
    """
    _check(votes, magnitude, shape)
    n, m = pattern.n, pattern.m
    if n is None or m is None:
        raise ConfigError("`pruner.pattern` must be 'N:M' for groups of M, got 'unstructured'.")
    check_divides(pattern, shape[1])
    keeps, codes = votes.keeps(0, votes.numel), magnitude.view(np.uint32)
    keys = codes if rule.ties == "magnitude" else _keys(rule, codes.size)
    if rule.majority_floor:
        np.minimum(keeps, votes.half, out=keeps)
        keys = np.where(keeps == votes.half, codes, keys)
    keys, keeps = keys.reshape(shape), keeps.reshape(shape)
    return BitMask.from_bool(keep_ranked(keeps, keys, m - n, m))


def _keys(rule: Rule, count: int) -> Codes:
    """Return what ranks ties by index or at random; NumPy keeps a generator's raw output."""
    if rule.ties == "index":
        return np.zeros(count, np.uint32)
    return (np.random.PCG64(rule.seed).random_raw(count) >> np.uint64(32)).astype(np.uint32)


def _lines(values: NDArray[Number], size: int, rule: Rule) -> NDArray[Number]:
    """Return a value per weight by comparison group, zeros added up to whole words of bits."""
    if rule.group == "column":
        values = _turned(values.reshape(size, -1))
    lines = values.reshape(-1, size)
    return np.pad(lines, ((0, 0), (0, -size % 64))) if size % 64 else lines


def _turned(values: NDArray[Number]) -> NDArray[Number]:
    transposed: NDArray[Number] = torch.from_numpy(values).t().contiguous().numpy()
    return transposed


def _bool(words: Words) -> NDArray[np.bool_]:
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").view(np.bool_)


def _check(votes: VoteCounter, magnitude: NDArray[np.float32], shape: tuple[int, int]) -> None:
    if not votes.numel == shape[0] * shape[1] == magnitude.size or magnitude.ndim != 1:
        raise ModelError(
            f"Votes of {votes.numel} weights do not fit a {shape[0]}x{shape[1]} weight "
            f"with magnitudes of shape {magnitude.shape}."
        )
