"""Which of several equally voted weights to prune: by magnitude, by index or at random.

Where few weights are tied only they are looked at; where many are, compiled loops take them in
place.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.group_loops import clear_lowest, compare
from fedprune.methods.keys import Codes, Indices, Keys, MatrixKeys, RandomKeys
from fedprune.methods.votes import Words

Flags = NDArray[np.bool_]

_BYTES = 1 << 17  # bytes searched for set bits at a time
_DENSE = 1 / 16  # share of tied weights from which they are looked at in place
_SAMPLE = 1 << 16  # weights of a layer that tell where its threshold lies
_HIGHEST = 0x7FFFFFFF  # of codes
_CHUNK = 1 << 14  # words of the groups whose ties are sorted together: 2**20 weights


Order = MatrixKeys | RandomKeys | None


def drop_tied(tied: Words, prune: Indices, keys: Order) -> None:
    """Clear `prune` bits of each row: those of the lowest key, of equals the first.

    Parameters
    ----------
    tied : Words
        Shape (groups, words), changed in place.
    prune : NDArray[np.int64]
        Bits to clear in each row, at most as many as are set, shape (groups,).
    keys : MatrixKeys or RandomKeys or None
        What to sort by; None: the first bits are cleared.
    """
    rows = max(_CHUNK // tied.shape[1], 1)
    for first in range(0, tied.shape[0], rows):
        part, quota = tied[first : first + rows], prune[first : first + rows]
        busy = np.flatnonzero(quota)
        if not busy.size:
            continue
        chosen = part if busy.size == len(part) else part[busy]
        ties = int(np.bitwise_count(chosen).sum(dtype=np.int64))
        if ties <= _DENSE * 64 * chosen.size:
            _drop_few(chosen, quota[busy], keys, busy + first)
        elif isinstance(keys, MatrixKeys):
            _drop_lowest(chosen, quota[busy], keys, busy + first)
        else:
            _drop_many(chosen, quota[busy], keys)
        if chosen is not part:
            part[busy] = chosen


def _drop_few(tied: Words, quota: Indices, keys: Order, groups: Indices) -> None:
    """Clear `quota` bits of each row, one of which each has to lose, bit by bit."""
    places = _set_bits(tied)
    rows, members = np.divmod(places, tied.shape[1] * 64)
    if isinstance(keys, MatrixKeys):
        drop = _lowest(rows, keys.at(groups[rows], members), quota)
    elif isinstance(keys, RandomKeys):
        drop = _lowest(rows, keys.draw(places.size), quota)
    else:
        drop = _first(rows, quota)
    # Subtracting a bit that is set clears it.
    places = places[drop]
    bits = np.uint8(1) << (places % 8).astype(np.uint8)
    np.subtract.at(tied.reshape(-1).view(np.uint8), places // 8, bits)


def _drop_lowest(tied: Words, quota: Indices, keys: MatrixKeys, groups: Indices) -> None:
    """Clear the same bits as `_drop_few`, all bits at once."""
    if keys.layer is None:
        codes, lines = keys.lines(groups)
        clear_lowest(tied, quota.astype(np.int64), codes, lines)
        return
    below, inside = np.empty_like(tied[0]), np.empty_like(tied)
    for low, high in (_likely(tied, int(quota[0]), keys.layer), (0, _HIGHEST)):
        compare(keys.layer, low, high, below, inside[0])
        below &= tied[0]
        inside &= tied
        left = quota - np.bitwise_count(below).sum(dtype=np.int64)
        if 0 <= left[0] <= np.bitwise_count(inside).sum(dtype=np.int64):
            break
    tied ^= below
    tied ^= inside
    if left[0]:
        _drop_few(inside, left, keys, groups)
    tied |= inside


def _likely(tied: Words, quota: int, codes: Codes) -> tuple[int, int]:
    """Return a bracket that most likely holds the highest code that is cleared, by a sample."""
    places = np.arange(0, codes.size, codes.size // _SAMPLE | 1)
    flags = tied.view(np.uint8)[0, places // 8] >> (places % 8).astype(np.uint8) & 1
    sample = codes[places[flags.view(np.bool_)]]
    share = quota / int(np.bitwise_count(tied).sum(dtype=np.int64))
    margin = 2 * math.sqrt(sample.size) + 1  # four standard deviations of a rank, or more
    first = math.floor(share * sample.size - margin)
    last = math.ceil(share * sample.size + margin)
    low = int(np.partition(sample, first)[first]) if first >= 0 else 0
    high = int(np.partition(sample, last)[last]) if last < sample.size else _HIGHEST
    return low, high


def _drop_many(tied: Words, quota: Indices, keys: RandomKeys | None) -> None:
    """Clear the same bits as `_drop_few`, all bits at once, for keys that no weight has."""
    flags = np.unpackbits(tied.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
    codes = np.where(flags, np.uint32(0), np.uint32(0xFFFFFFFF))
    limits = np.zeros(quota.size, dtype=np.uint32)
    if keys is not None:
        codes[flags] = keys.draw(int(np.count_nonzero(flags)))
    if keys is not None and quota.size == 1:
        limits[0] = _at_rank(codes[flags], int(quota[0]) - 1)
    elif keys is not None:
        ranks = (quota - 1).tolist()
        limits = np.array(
            [np.partition(row, rank)[rank] for row, rank in zip(codes, ranks, strict=True)]
        )
    drop = codes < limits[:, np.newaxis]
    left = quota - np.count_nonzero(drop, axis=1)
    rows, members = np.nonzero(flags & (codes == limits[:, np.newaxis]))
    first = _first(rows, left)
    drop[rows[first], members[first]] = True
    flags ^= drop
    tied[:] = np.packbits(flags, axis=1, bitorder="little").view(np.uint64)


def _at_rank(keys: Keys, rank: int) -> np.uint32:
    """Return the key at a rank, from 0, of any number of keys: counted by their upper halves."""
    upper = (keys >> np.uint32(16)).astype(np.uint16)
    ends = np.bincount(upper, minlength=1 << 16).cumsum()
    digit = int(np.searchsorted(ends, rank, side="right"))
    rank -= int(ends[digit - 1]) if digit else 0
    key: np.uint32 = np.partition(keys[np.flatnonzero(upper == digit)], rank)[rank]
    return key


def _lowest(rows: Indices, keys: Keys, quota: Indices) -> Flags:
    """Return flags of each row's `quota` lowest keys, of equals the first."""
    if quota.size == 1:
        limit = _at_rank(keys, int(quota[0]) - 1)
        lowest: Flags = keys < limit
        equal = np.flatnonzero(keys == limit)
        lowest[equal[: quota[0] - np.count_nonzero(lowest)]] = True
        return lowest
    ends = np.bincount(rows, minlength=quota.size).cumsum()
    starts = np.concatenate(([0], ends[:-1]))
    ordered = rows.astype(np.uint64) << np.uint64(32) | keys
    limits = np.sort(ordered)[starts + quota - 1].astype(np.uint32)[rows]
    lowest = keys < limits
    equal = np.flatnonzero(keys == limits)
    left = quota - np.bincount(rows[lowest], minlength=quota.size)
    lowest[equal[_first(rows[equal], left)]] = True
    return lowest


def _first(rows: Indices, quota: Indices) -> Flags:
    """Return flags of the first `quota` entries of each row; `rows` ascend."""
    counts = np.bincount(rows, minlength=quota.size)
    starts = counts.cumsum() - counts
    flags: Flags = np.arange(rows.size) < (starts + quota)[rows]
    return flags


def _set_bits(words: Words) -> Indices:
    """Return the ascending places of the set bits, rows one after the other.

    Few are expected, so empty words and bytes are skipped.
    """
    flat = words.reshape(-1)
    dtype = np.int32 if flat.size * 64 <= np.iinfo(np.int32).max else np.int64
    step = _BYTES // 8
    parts: list[Indices] = []
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        filled = np.flatnonzero(part)
        found = part[filled].view(np.uint8)
        places = np.flatnonzero(found != 0)
        flags = np.unpackbits(found[places], bitorder="little").view(np.bool_)
        bits = np.flatnonzero(flags)
        places = places[bits // 8]
        bits = (filled[places // 8] * 8 + places % 8) * 8 + bits % 8 + start * 64
        parts.append(bits.astype(dtype))
    return np.concatenate(parts)
