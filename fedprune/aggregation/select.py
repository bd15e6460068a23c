"""From votes to one mask: the most voted weights are pruned, exactly as many as asked.

FedPrLLM's server step (arXiv 2505.13547, step 4 of its algorithm) with ties broken by |W| and
index instead of at random. The threshold is found digit by digit on the counter's bit planes, from
the highest down: no votes are unpacked and nothing is sorted.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.aggregation.votes import VoteCounter, Words
from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError
from fedprune.wire.bitmask import BitMask, packed_size, popcount

_BYTES = 1 << 17  # bytes of a step over ties: 2**20 weights
_WEIGHTS = 1 << 18  # weights of a step over N:M groups


def select_layer(
    votes: VoteCounter, prune: int, magnitude: NDArray[np.float32], shape: tuple[int, int]
) -> BitMask:
    """Return the mask that prunes the `prune` most voted weights of a linear.

    Parameters
    ----------
    votes : VoteCounter
        Votes of all clients.
    prune : int
        Weights to prune, 0 <= prune <= d_out * d_in.
    magnitude : NDArray[np.float32]
        |W|, flat, shape (d_out * d_in,), without NaN. Of equally voted weights the smaller is
        pruned first; of those of equal magnitude the one of lower index.
    shape : tuple of int
        (d_out, d_in) of the weight.

    Raises
    ------
    ModelError
        If the sizes do not fit each other, or `prune` is out of range.
    """
    _check_sizes(votes, magnitude, shape)
    if not 0 <= prune <= votes.numel:
        raise ModelError(f"Cannot prune {prune} of {votes.numel} weights.")
    survivors, tied, left = _split_at(votes, prune)
    survivors |= _keep_larger(tied, left, magnitude)
    return BitMask(survivors.view(np.uint8)[: packed_size(votes.numel)], shape)


def select_nm(
    votes: VoteCounter, pattern: Pattern, magnitude: NDArray[np.float32], shape: tuple[int, int]
) -> BitMask:
    """Return the mask that keeps the N least voted weights of every M consecutive inputs.

    Parameters are those of `select_layer`, ties are broken alike.

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
    step = max(_WEIGHTS // m, 1) * m
    for start in range(0, votes.numel, step):
        stop = min(start + step, votes.numel)
        keeps = (votes.clients - votes.counts(start, stop)).astype(np.uint64)
        # Bit patterns of non-negative floats sort as the floats do: one key holds both.
        keys = keeps << np.uint64(32) | magnitude[start:stop].view(np.uint32)
        ranks = _ranks(keys.reshape(-1, m).T)
        mask[start:stop].reshape(-1, m)[:] = (ranks >= m - n).T
    return BitMask.from_bool(mask.reshape(shape))


def _split_at(votes: VoteCounter, prune: int) -> tuple[Words, Words, int]:
    """Return the sure survivors, the weights tied at the threshold, how many of those to prune."""
    full = np.zeros((votes.numel + 63) // 64 * 8, dtype=np.uint8)
    full[: packed_size(votes.numel)] = 0xFF
    if votes.numel % 8:
        full[packed_size(votes.numel) - 1] = (1 << votes.numel % 8) - 1
    tied = full.view(np.uint64)
    survivors = np.zeros_like(tied)
    ones = np.empty_like(tied)
    size = votes.numel
    for plane in reversed(votes.keep_planes()):
        np.bitwise_and(tied, plane, out=ones)  # kept by more clients than the other candidates
        keep = popcount(ones.view(np.uint8))
        if size - keep > prune:  # the threshold is among the others
            survivors |= ones
            tied ^= ones
            size -= keep
        else:
            tied, ones = ones, tied
            prune -= size - keep
            size = keep
    return survivors, tied, prune


def _keep_larger(tied: Words, prune: int, magnitude: NDArray[np.float32]) -> Words:
    """Return the tied weights without their `prune` smallest, of equals the first."""
    if prune == 0:
        return tied
    kept = tied.view(np.uint8)
    parts = [(start, _set_bits(kept[start : start + _BYTES])) for start in _starts(kept)]
    found = [magnitude[start * 8 :][indices] for start, indices in parts]
    sizes = np.concatenate(found)
    limit = np.partition(sizes, prune - 1)[prune - 1]
    equal = prune - int(np.count_nonzero(sizes < limit))  # of these, the first are pruned
    for (start, indices), size in zip(parts, found, strict=True):
        drop = size < limit
        first = np.flatnonzero(size == limit)[:equal]
        drop[first] = True
        equal -= first.size
        places = indices[drop]
        # Subtracting a bit that is set clears it.
        np.subtract.at(kept[start:], places // 8, np.uint8(1) << (places % 8).astype(np.uint8))
    return tied


def _starts(packed: NDArray[np.uint8]) -> range:
    return range(0, packed.size, _BYTES)


def _set_bits(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the ascending indices of the set bits; few are expected, so empty words are skipped.

    Parameters
    ----------
    packed : NDArray[np.uint8]
        A multiple of 8 bytes, less than 2**28.
    """
    words = np.flatnonzero(packed.view(np.uint64)).astype(np.int32)
    found = packed.view(np.uint64)[words].view(np.uint8)
    places = np.flatnonzero(found != 0)
    flags = np.unpackbits(found[places], bitorder="little").view(np.bool_)
    bits = np.flatnonzero(flags)
    places = places[bits // 8]
    return ((words[places // 8] * 8 + places % 8) * 8 + bits % 8).astype(np.int32)


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
