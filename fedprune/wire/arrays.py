"""Named arrays as bytes and back: the one form in which anything of ours travels.

The bytes are those of a safetensors file, which any tool reads. The same arrays are the same bytes.
Two things are added. The file's metadata have one entry, ``crc32``, of all that follows the
header's length, so that damage is noticed. And an array of integers is packed where that is
shorter: it then is called, for example, ``NAME.deflate.uint8.3x4`` and is a raw deflate stream of
its bytes, the lowest byte of all numbers first. Huffman codes do it, there are no repetitions to
look for in masks and sums; what looks like noise is not tried.

A reader says what it expects, by name, type and shape, from what it knows of the model. It gets
exactly that or a ``WireError``: sizes are checked before anything is allocated, nothing is read
past the end, nothing may be left over, and the header must be byte for byte the one that
:func:`encode_arrays` writes for the arrays that it announces, so that offsets cannot overlap and no
name can be there twice. That is why the library's own reader does not serve; it also copies each
array.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError

# In the order of safetensors' own writer: the last ones come first, so that all are aligned.
_CODES = {
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
_PLACES = {dtype: -place for place, dtype in enumerate(_CODES)}

_LENGTH = 8  # bytes of the header's length
_CHECKSUM = slice(26, 34)  # where it stands in a header
_BLANK = "0" * 8
_METADATA = "__metadata__"
_SAME_RELEASE = "Run the same release of fedprune everywhere."
_ENTRY = 240  # bytes of an array's entry in the header, its name apart
_MOST_HEADER = 1 << 22  # of a message of which nothing is known
_PACKED = ".deflate."
_SAMPLE = 1 << 16  # bytes that tell whether packing is worth trying
_NEVER_SHORTER = 8  # bytes of integers that a stream's own marks outweigh, whatever they are
_NOISE = 7.5  # bits in a byte from which on it is not
_FEW_ROWS = 32
_MOST_AXES = 8


@dataclass(frozen=True)
class ArraySpec:
    """The type and shape of an array."""

    # uint8, int8, uint16, int16, float16, bfloat16, uint32, int32, float32, uint64, int64 or
    # float64. numpy has no bfloat16: such an array is written from a tensor and read as the
    # ``uint16`` of its bits.
    dtype: str
    shape: tuple[int, ...] = ()  # empty for a single number

    @property
    def stored(self) -> np.dtype[np.generic]:
        """The numpy type that holds it, little endian."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of such an array that is not packed."""
        return math.prod(self.shape) * self.stored.itemsize

    def __str__(self) -> str:
        """Return type and shape, as ``float32[3, 4]``."""
        return f"{self.dtype}{list(self.shape)}"


def encode_arrays(arrays: Mapping[str, NDArray[Any] | Tensor]) -> bytes:
    """Return named arrays as bytes.

    `arrays`: of the types that :class:`ArraySpec` lists; tensors on the CPU. Returns a safetensors
    file, which :func:`decode_arrays` reads. The order of names does not show.

    Examples
    --------
    >>> data = encode_arrays({"mlp.up_proj.squares": np.ones(3, dtype=np.float32)})
    >>> decode_arrays(data, {"mlp.up_proj.squares": ArraySpec("float32", (3,))})
    {'mlp.up_proj.squares': array([1., 1., 1.], dtype=float32)}
    """
    specs: dict[str, ArraySpec] = {}
    bodies: dict[str, memoryview | bytes] = {}
    for name, array in arrays.items():
        spec, values = _stored(name, array)
        packed = _pack(values) if "int" in spec.dtype else None
        if packed is None:
            specs[name], bodies[name] = spec, values.reshape(-1).view(np.uint8).data
        else:
            specs[_packed_name(name, spec)] = ArraySpec("uint8", (len(packed),))
            bodies[_packed_name(name, spec)] = packed
    ordered = [bodies[name] for name in _order(specs)]
    blank = _header(specs, _BLANK)
    checksum = zlib.crc32(blank)
    for part in ordered:
        checksum = zlib.crc32(part, checksum)
    header = blank[: _CHECKSUM.start] + f"{checksum:08x}".encode() + blank[_CHECKSUM.stop :]
    return b"".join((len(header).to_bytes(_LENGTH, "little"), header, *ordered))


def decode_arrays(
    data: bytes | memoryview, expected: Mapping[str, ArraySpec]
) -> dict[str, NDArray[Any]]:
    """Read exactly the arrays that are expected.

    `data`: what :func:`encode_arrays` made; may come from anyone. `expected`: name -> type and
    shape. No more memory is taken than they stand for; see :func:`most_bytes` for a limit on what
    is received. Returns the arrays, in the order of ``expected``. They are read-only, and may share
    memory with ``data``. Values are not looked at: a number may be NaN. Raises WireError if
    anything is damaged, missing, of another type or shape, or not expected. It names what was
    expected; nothing that came is quoted.
    """
    arrays = Arrays(data, expected)
    found = {name: arrays.take(name, spec) for name, spec in expected.items()}
    arrays.finish()
    return found


def most_bytes(expected: Mapping[str, ArraySpec]) -> int:
    """Return the most bytes that a message of such arrays can have."""
    return _LENGTH + _most_header(expected) + sum(spec.nbytes for spec in expected.values())


def array_names(data: bytes | memoryview) -> frozenset[str]:
    """Return the names of the arrays that a message announces; nothing else of it is checked."""
    stored, _ = _read_header(_bytes_of(data), _MOST_HEADER)
    return frozenset(_plain(name, spec)[0] for name, spec in stored.items())


class Arrays:
    """A message whose arrays are taken one by one, where what is expected depends on others of it.

    `data`: what :func:`encode_arrays` made; may come from anyone. `names`: all names that are
    possible, for a limit on the header. Raises WireError if it is no message of arrays, or a
    damaged one.
    """

    def __init__(self, data: bytes | memoryview, names: Iterable[str]) -> None:
        view = _bytes_of(data)
        stored, header = _read_header(view, _most_header(names))
        self._specs: dict[str, ArraySpec] = {}
        self._bodies: dict[str, memoryview] = {}
        self._packed: set[str] = set()
        place = start = _LENGTH + len(header)
        for stored_name in _order(stored):
            stop = place + stored[stored_name].nbytes
            name, spec = _plain(stored_name, stored[stored_name])
            if name in self._specs:
                raise WireError("an array is there twice, packed and not.")
            self._specs[name], self._bodies[name] = spec, view[place:stop]
            if name != stored_name:
                self._packed.add(name)
            place = stop
        if place != len(view):
            raise WireError(f"these arrays must have {place} bytes, got {len(view)}.")
        blank = header[: _CHECKSUM.start] + _BLANK.encode() + header[_CHECKSUM.stop :]
        summed = f"{zlib.crc32(view[start:], zlib.crc32(blank)):08x}".encode()
        if header[_CHECKSUM] != summed:
            raise WireError("the CRC-32 of these arrays is not the one that they came with.")
        self.names = frozenset(self._specs)

    def announced(self, name: str) -> ArraySpec:
        """Return the type and shape that an array says it has, which nobody checked."""
        if name not in self._specs:
            raise WireError(f"'{name}' is missing.")
        return self._specs[name]

    def take(self, name: str, spec: ArraySpec) -> NDArray[Any]:
        """Return an array, which must be of that type and shape; as :func:`decode_arrays`."""
        body = self._bodies.pop(name, None)
        if body is None:
            raise WireError(f"'{name}' is missing, expected {spec}.")
        if self._specs[name] != spec:
            raise WireError(f"'{name}' must be {spec}, got {self._specs[name]}.")
        if name in self._packed:
            array = _unpack(body, name, spec)
        else:
            array = np.frombuffer(body, spec.stored).reshape(spec.shape)
        array.flags.writeable = False
        return array

    def finish(self) -> None:
        """Refuse arrays that nobody took."""
        if self._bodies:
            raise WireError(f"{len(self._bodies)} arrays came that were not expected.")


def _stored(name: str, array: NDArray[Any] | Tensor) -> tuple[ArraySpec, NDArray[Any]]:
    """Return what an array is, and its values, contiguous and little endian."""
    dtype = array.dtype.name if isinstance(array, np.ndarray) else str(array.dtype)[6:]
    spec = ArraySpec(dtype, tuple(array.shape))
    if spec.dtype not in _CODES:
        raise WireError(f"'{name}' must be one of {', '.join(_CODES)}, got {spec.dtype}.")
    if _PACKED in name or name == _METADATA:
        raise WireError(f"an array cannot be called '{name}'.")
    if isinstance(array, Tensor):
        array = array.detach().view(_BITS[array.dtype.itemsize]).numpy().view(spec.stored)
    return spec, np.ascontiguousarray(array, dtype=spec.stored)


def _order(specs: Mapping[str, ArraySpec]) -> list[str]:
    """Return names in the order of their bytes: the widest type first, then by name."""
    return sorted(specs, key=lambda name: (_PLACES[specs[name].dtype], name))


def _header(specs: Mapping[str, ArraySpec], checksum: str) -> bytes:
    """Return the header of such arrays, the only one that there is."""
    entries: dict[str, object] = {_METADATA: {"crc32": checksum}}
    start = 0
    for name in _order(specs):
        spec = specs[name]
        stop = start + spec.nbytes
        code, shape = _CODES[spec.dtype], list(spec.shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _most_header(names: Iterable[str]) -> int:
    return 64 + sum(_ENTRY + len(json.dumps(name)) for name in names)


def _bytes_of(data: bytes | memoryview) -> memoryview:
    view = memoryview(data)
    if not view.c_contiguous:
        raise WireError("a message of arrays must be contiguous bytes.")
    return view.cast("B")


def _read_header(view: memoryview, most: int) -> tuple[dict[str, ArraySpec], bytes]:
    """Return what a header announces, and its bytes."""
    size = int.from_bytes(view[:_LENGTH], "little")
    if size > most:
        raise WireError(
            f"a message of arrays starts with a header of {most} bytes at most, this one would "
            f"have {size}. {_SAME_RELEASE}"
        )
    stop = _LENGTH + size
    if stop > len(view):
        raise WireError(
            f"a message of arrays ends too early: its header would end at byte {stop}, there are "
            f"{len(view)}."
        )
    header = bytes(view[_LENGTH:stop])
    try:
        entries = json.loads(header)
        del entries[_METADATA]
        specs = {
            name: _checked_spec(_DTYPES[entry["dtype"]], entry["shape"])
            for name, entry in entries.items()
        }
        sound = _header(specs, header[_CHECKSUM].decode()) == header
        for name, spec in specs.items():
            _plain(name, spec)
    # Whatever JSON can hold in place of what should be there.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise WireError(f"a message of arrays starts with their header. {_SAME_RELEASE}")
    return specs, header


def _checked_spec(dtype: str, shape: list[int]) -> ArraySpec:
    """Return what an array is, ValueError if there is none of that type and shape."""
    whole = all(type(size) is int and 0 <= size < 1 << 63 for size in shape)
    if dtype not in _CODES or not whole or len(shape) > _MOST_AXES:
        raise ValueError
    return ArraySpec(dtype, tuple(shape))


def _packed_name(name: str, spec: ArraySpec) -> str:
    return f"{name}{_PACKED}{spec.dtype}.{'x'.join(map(str, spec.shape))}"


def _plain(name: str, spec: ArraySpec) -> tuple[str, ArraySpec]:
    """Return what an array is called, and is, when unpacked; ValueError if it cannot be that."""
    plain, packed, label = name.partition(_PACKED)
    if not packed:
        return name, spec
    dtype, _, shape = label.partition(".")
    found = _checked_spec(dtype, [int(size) for size in shape.split("x") if size])
    right = "int" in dtype and _packed_name(plain, found) == name
    if not right or spec.dtype != "uint8" or spec.nbytes >= found.nbytes:
        raise ValueError
    return plain, found


def _pack(values: NDArray[Any]) -> bytes | None:
    """Return integers as a deflate stream, None where that is not shorter."""
    if values.nbytes <= _NEVER_SHORTER:
        return None
    planes = values.reshape(-1, 1).view(np.uint8).T
    # Half of all weights, drawn from all, is noise: a sample tells, at no cost beside the rest.
    sample = planes[:, :: planes.size // _SAMPLE | 1]
    counts = np.bincount(sample.reshape(-1))
    shares = counts[counts > 0] / sample.size
    if -(shares * np.log2(shares)).sum() > _NOISE:
        return None
    rows = planes.reshape(-1, values.shape[-1]) if 1 < values.ndim <= 2 else planes
    # A few long rows are digits of numbers: each has a code of its own, and some are all zero.
    few = 1 < len(rows) <= _FEW_ROWS
    strategy = zlib.Z_RLE if few else zlib.Z_HUFFMAN_ONLY
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    parts = []
    for row in rows if few else planes:
        parts += [coder.compress(np.ascontiguousarray(row).data), coder.flush(zlib.Z_BLOCK)]
    packed = b"".join((*parts, coder.flush()))
    return packed if len(packed) < values.nbytes else None


def _unpack(body: memoryview, name: str, spec: ArraySpec) -> NDArray[Any]:
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One more than may come, and never a flood.
        plain = decoder.decompress(body, spec.nbytes + 1)
    except zlib.error:
        raise WireError(f"'{name}' cannot be unpacked.") from None
    if len(plain) != spec.nbytes or not decoder.eof or decoder.unused_data:
        raise WireError(f"'{name}' must have {spec.nbytes} bytes when unpacked.")
    planes = np.frombuffer(plain, np.uint8).reshape(spec.stored.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(spec.stored).reshape(spec.shape)
