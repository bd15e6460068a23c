"""Messages as somebody who means harm would make them: arbitrary, or valid ones that were changed.

Checksums are made right again, or a fuzzer would never get past them.
"""

import json
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from fedprune.wire.arrays import _DTYPES, _PLACES, ArraySpec, _header, _order
from tests.support.damage import sealed, split

T = TypeVar("T")

fuzzed = settings(max_examples=settings().max_examples // 2)
"""For every test of this kind: there are many, and the longer profile makes up for it."""

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40)
_MOST_CHANGES = 6
_ROOM = (
    4_000_000  # bytes that a reader may take whatever it reads: tables, tensors, texts of errors
)
_TIMES = 40  # and for each byte that came or that the model's shapes explain


@st.composite
def changed(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
    """Draw a valid message after a few changes."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, _MOST_CHANGES))):
        change = draw(st.sampled_from(_CHANGES))
        change(draw, data, valid)
    return bytes(data)


def _place(draw: st.DrawFn, data: bytearray) -> int:
    # Half of them near the front, where the numbers are that everything else follows from.
    most = len(data) if draw(st.booleans()) else min(len(data), 64)
    return draw(st.integers(0, most))


def _flip(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> None:
    place = _place(draw, data)
    if place < len(data):
        data[place] ^= 1 << draw(st.integers(0, 7))


def _cut(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> None:
    start = _place(draw, data)
    del data[start : draw(st.integers(start, len(data)))]


def _insert(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> None:
    place = _place(draw, data)
    data[place:place] = draw(st.binary(min_size=1, max_size=40))


def _splice(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> None:
    other = draw(st.sampled_from(valid))
    data[_place(draw, data) :] = other[draw(st.integers(0, len(other))) :]


def _extreme(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> None:
    size = draw(st.sampled_from((1, 2, 4, 8)))
    place = _place(draw, data)
    value = draw(st.sampled_from(EXTREMES)) % (1 << 8 * size)
    data[place : place + size] = value.to_bytes(size, "little")


def _repeat(draw: st.DrawFn, data: bytearray, valid: Sequence[bytes]) -> None:
    start = _place(draw, data)
    stop = draw(st.integers(start, min(len(data), start + 200)))
    data[stop:stop] = data[start:stop] * draw(st.integers(1, 20))


_CHANGES = (_flip, _cut, _insert, _splice, _extreme, _repeat)


def anything(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return arbitrary bytes, some behind the first ones of a valid message, and changed ones."""
    heads = st.builds(
        lambda one, size, rest: one[:size] + rest,
        st.sampled_from(valid),
        st.integers(0, 64),
        st.binary(max_size=200),
    )
    return st.one_of(st.binary(max_size=300), heads, changed(valid), changed(valid))


def _parts(message: bytes) -> dict[str, tuple[ArraySpec, bytes]]:
    """Return the arrays of a message as it has them."""
    header, body = split(message)
    found = {}
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            spec = ArraySpec(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
            found[name] = spec, body[start:stop]
    return found


@st.composite
def rearranged(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
    """Draw a valid message with arrays dropped, renamed, of another type or shape, or changed."""
    arrays = _parts(draw(st.sampled_from(valid)))
    names = sorted({name for one in valid for name in _parts(one)})
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        spec, body = arrays.pop(name, (ArraySpec("uint8", (0,)), b""))
        change = draw(st.sampled_from(["drop", "rename", "dtype", "shape", "size", "bytes"]))
        if change == "drop":
            continue
        if change == "rename":
            name = draw(st.sampled_from([*names, name.partition(".deflate")[0]]))
        elif change == "dtype":
            spec = ArraySpec(draw(st.sampled_from(sorted(_PLACES))), spec.shape)
        elif change == "shape":
            spec = ArraySpec(spec.dtype, spec.shape[::-1] if draw(st.booleans()) else (len(body),))
        elif change == "size":
            spec = ArraySpec(spec.dtype, (draw(st.integers(0, 300)),))
        else:
            body = draw(st.binary(min_size=1, max_size=len(body) + 1)) + body
        arrays[name] = spec, (body + bytes(spec.nbytes))[: spec.nbytes]
    specs = {name: spec for name, (spec, _) in arrays.items()}
    body = b"".join(arrays[name][1] for name in _order(specs))
    header = _header(specs, "0" * 8)
    return sealed(len(header).to_bytes(8, "little") + header + body)


def survives(
    read: Callable[[], T], errors: tuple[type[Exception], ...], explained: int
) -> T | None:
    """Return what a reader makes of something, None if it refuses it as it may.

    Fails on any other error, and where it took more memory than what came explains.

    `explained`: bytes that came, and that the model's shapes stand for.
    """
    tracemalloc.start()
    try:
        return read()
    except errors as error:
        assert str(error), "an error says what is wrong"
        assert len(str(error)) < 4_000, "an error does not quote what it read"
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > _ROOM + _TIMES * explained:
            pytest.fail(f"{peak} bytes of memory for {explained} bytes")


def explained(data: bytes, shapes: Iterable[tuple[int, int]]) -> int:
    """Return the bytes that came and that shapes stand for."""
    return len(data) + sum(rows * columns for rows, columns in shapes)
