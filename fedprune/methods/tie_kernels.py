"""Loops over bits and keys of comparison groups: 64 weights a word, the lowest bit first."""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit
from fedprune.pruning.selection_kernels import find_threshold

Words = NDArray[np.uint64]
Codes = NDArray[np.uint32]

_SAMPLE = 1 << 18  # ties of a group that tell where among more of them the limit is
_ALL = 1 << 32  # above all keys


def at_least(planes: Words, number: int) -> Words:
    """Return the bits of numbers, given by their binary digits, that are not below another."""
    more, equal = np.zeros(planes.shape[1:], np.uint64), np.full(planes.shape[1:], ~np.uint64(0))
    for digit in reversed(range(len(planes))):
        if number >> digit & 1:
            equal &= planes[digit]
        else:
            more |= equal & planes[digit]
            equal &= ~planes[digit]
    return more | equal


@jit
def narrow(planes: Words, rest: Words, tied: Words, left: NDArray[np.int64]) -> Words:
    """Return which weights are above the number at which each group's pruning ends.

    `planes`: binary digits of the weights' numbers, lowest first, shape (digits, groups, words).
    `rest`: weights above all others, whatever their digits. `tied`: all weights, shape (groups,
    words); those that have the number are left. `left`: how many of the lowest are to be pruned,
    shape (groups,); in the end how many of the tied.
    """
    kept = np.zeros_like(tied)
    for group in range(left.size):
        ties, more, above = tied[group], rest[group], kept[group]
        for digit in range(len(planes) - 1, -1, -1):
            ones = planes[digit, group]
            zeros = 0
            for word in range(ties.size):
                zeros += _popcount(ties[word] & ~(ones[word] | more[word]))
            if zeros > left[group]:
                for word in range(ties.size):
                    above[word] |= ties[word] & (ones[word] | more[word])
                    ties[word] &= ~(ones[word] | more[word])
            else:
                left[group] -= zeros
                for word in range(ties.size):
                    ties[word] &= ones[word] | more[word]
    return kept


@jit
def prune_ties(tied: Words, keys: Codes, left: NDArray[np.int64]) -> None:
    """Clear the bits of the lowest keys of each group, of equal ones the first.

    `tied`: shape (groups, words), changed. `keys`: shape (groups, 64 * words). `left`: how many of
    each group's bits to clear, at most as many as are set.
    """
    found = np.empty(keys.shape[1], keys.dtype)
    for group in range(left.size):
        if left[group] > 0:
            _prune(tied[group], keys[group], left[group], found)


@jit
def _prune(tied: Words, keys: Codes, left: int, found: Codes) -> None:
    size = 0
    for word in range(tied.size):
        size += _popcount(tied[word])
    low, high = 0, _ALL
    step = 1 + size // _SAMPLE
    if step > 1:  # a sample of the words brackets the limit, give or take four deviations
        _, count = _gather(tied, keys, step, (low, high), found)
        rank, margin = left * count // size, int(2 * np.sqrt(count)) + 1
        low, _ = find_threshold(found[:count], max(rank - margin, 0), (0, _ALL - 1), count)
        high, _ = find_threshold(found[:count], min(rank + margin, count), (0, _ALL - 1), count)
        high += 1
    below, count = _gather(tied, keys, 1, (low, high), found)
    if not below < left <= below + count:
        below, count = _gather(tied, keys, 1, (0, _ALL), found)
    bracket = int(found[:count].min()), int(found[:count].max())
    last, left = find_threshold(found[:count], left - below, bracket, count)
    for word in range(tied.size):
        if tied[word]:
            lower, equal = _compare(keys[word * 64 : word * 64 + 64], last, last + 1)
            tied[word] &= ~lower
            equal &= tied[word]
            while equal and left > 0:
                tied[word] ^= equal & (~equal + np.uint64(1))
                equal &= equal - np.uint64(1)
                left -= 1


@jit
def _gather(
    tied: Words, keys: Codes, step: int, bracket: tuple[int, int], found: Codes
) -> tuple[int, int]:
    """Copy the tied keys of every `step`-th word that are inside the bracket, its end not included.

    Return how many are below it, and how many were copied.
    """
    below = count = 0
    for word in range(0, tied.size, step):
        bits = tied[word]
        part = keys[word * 64 : word * 64 + 64]
        if bits and bracket[1] < _ALL:
            lower, inside = _compare(part, bracket[0], bracket[1])
            below += _popcount(bits & lower)
            bits &= inside
        while bits:
            found[count] = part[_popcount(~bits & (bits - np.uint64(1)))]
            bits &= bits - np.uint64(1)
            count += 1
    return below, count


@jit
def _compare(keys: Codes, low: int, high: int) -> tuple[np.uint64, np.uint64]:
    """Return the bits of the 64 keys that are below `low`, and of those from there to `high`."""
    below = up_to = np.uint64(0)
    for j in range(64):  # of shifted bits compilers make vectors
        below |= np.uint64(np.int64(keys[j]) < low) << np.uint64(j)
        up_to |= np.uint64(np.int64(keys[j]) < high) << np.uint64(j)
    return below, up_to & ~below


@jit
def _popcount(word: np.uint64) -> int:
    """Return how many bits are set; compilers know this loop as one instruction."""
    count = 0
    while word:
        word &= word - np.uint64(1)
        count += 1
    return count
