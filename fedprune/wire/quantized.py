"""A weight as whole numbers of a few bits and a scale for each group of inputs."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.arrays import Arrays, ArraySpec
from fedprune.wire.lanes import pack_lanes, packed_length, unpack_lanes
from fedprune.wire.masks import BitMask

BITS = (4, 8)
"""How many bits a code can have."""

SCALES = (torch.float32, torch.bfloat16, torch.float16)
"""The types that scales, and so the weights that they make, can have."""

LEAST_GROUP = 32
"""How few inputs may share a scale, unless a row has fewer."""

PARTS = ("bits", "codes", "scales", "zeros")
"""The arrays of a quantised weight, beside its mask's."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A linear whose weight is ``(code - zero) * scale``, code by code.

    Groups are of consecutive inputs, all equally many: d_in over the columns of ``scales``.

    Raises WireError if the arrays do not belong together.
    """

    # shape (d_out, d_in), True where a weight survives; all of them where nothing is pruned too
    mask: BitMask
    bits: int
    # int8, shape (d_out, d_in), on the CPU, from ``-2**(bits-1)`` to ``2**(bits-1) - 1``. That of a
    # pruned weight is its group's zero, so that the weight is exactly zero.
    codes: Tensor
    # float32, bfloat16 or float16, shape (d_out, groups), on the CPU, positive. Their type is the
    # weight's.
    scales: Tensor
    # int8, shape (d_out, groups), in the range of codes; None (symmetric) is zero everywhere
    zeros: Tensor | None

    def __post_init__(self) -> None:
        """Refuse arrays that are not those of one weight."""
        if self.bits not in BITS:
            raise WireError(f"A quantised weight has 4 or 8 bits, got {self.bits}.")
        rows, columns = self.mask.shape
        groups = self.scales.shape[-1] if self.scales.ndim == 2 else 0
        self._check("codes", self.codes, (torch.int8,), (rows, columns))
        self._check("scales", self.scales, SCALES, (rows, groups))
        _check_groups(columns, groups)
        # The largest weight is the scale times a difference of codes, below 2**bits.
        wide = self.scales.double()
        top = wide * 2**self.bits
        if not bool(((wide > 0) & (top <= torch.finfo(self.scales.dtype).max)).all()):
            raise WireError("Scales must be positive and make finite weights.")
        shifted = [self.codes]
        if self.zeros is not None:
            self._check("zeros", self.zeros, (torch.int8,), (rows, groups))
            shifted.append(self.zeros)
        half = 1 << self.bits - 1
        if any(int(part.min()) < -half or int(part.max()) >= half for part in shifted):
            raise WireError(f"Codes of {self.bits} bits must be from {-half} to {half - 1}.")
        if self.mask.survivors < self.mask.numel:
            pruned = torch.from_numpy(self.mask.to_bool()).logical_not_()
            if bool((self._steps() * pruned).any()):
                raise WireError("The code of a pruned weight must be its group's zero.")

    def _check(
        self, name: str, part: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, int]
    ) -> None:
        right = part.dtype in dtypes and tuple(part.shape) == shape
        if not right or part.device.type != "cpu" or not part.is_contiguous():
            known = ", ".join(str(dtype) for dtype in dtypes)
            raise WireError(
                f"The {name} of a weight of {self.mask.shape[0]}x{self.mask.shape[1]} must be "
                f"{known} of shape {shape}, contiguous and on the CPU, got {part.dtype} of shape "
                f"{tuple(part.shape)} on {part.device}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight."""
        return self.mask.shape

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.mask.shape[1] // self.scales.shape[1]

    @property
    def checksum(self) -> int:
        """CRC-32 of all that makes the weight, so that two machines can compare theirs."""
        found = self.mask.checksum
        for part in (self.codes, self.scales.view(torch.uint8), self.zeros):
            if part is not None:
                found = zlib.crc32(part.numpy().data, found)
        return found

    def dense(self) -> Tensor:
        """Return the weight, (d_out, d_in), of the type of the scales.

        The product is taken in that type, as compressed-tensors does: codes are whole numbers that
        each type holds exactly, so that a weight is rounded once.
        """
        grouped = self._steps().view(*self.scales.shape, self.group_size)
        return (grouped.to(self.scales.dtype) * self.scales[..., None]).view(self.shape)

    def _steps(self) -> Tensor:
        """Return how many scales each weight is, int16, shape (d_out, d_in)."""
        steps = self.codes.to(torch.int16)
        if self.zeros is not None:
            grouped = steps.view(*self.scales.shape, self.group_size)
            grouped -= self.zeros[..., None].to(torch.int16)
        return steps

    def arrays(self) -> dict[str, NDArray[Any] | Tensor]:
        """Return the arrays of :data:`PARTS` that it is sent as, beside its mask."""
        half = 1 << self.bits - 1
        kept = self.codes.numpy()
        if self.mask.survivors < self.mask.numel:
            kept = kept[self.mask.to_bool()]
        arrays: dict[str, NDArray[Any] | Tensor] = {
            "bits": np.array(self.bits, dtype=np.uint8),
            "codes": pack_lanes(_unsigned(kept, half), self.bits),
            "scales": self.scales,
        }
        if self.zeros is not None:
            arrays["zeros"] = pack_lanes(_unsigned(self.zeros.numpy(), half), self.bits)
        return arrays

    def __eq__(self, other: object) -> bool:
        """Whether both make the same weight of the same codes, bit for bit."""
        if not isinstance(other, QuantizedWeight):
            return NotImplemented
        if self.zeros is None or other.zeros is None:
            same = self.zeros is other.zeros
        else:
            same = torch.equal(self.zeros, other.zeros)
        scales = self.scales.dtype == other.scales.dtype
        return (
            same
            and scales
            and self.bits == other.bits
            and self.mask == other.mask
            and torch.equal(self.codes, other.codes)
            and torch.equal(self.scales, other.scales)
        )

    __hash__ = None  # type: ignore[assignment]  # equality looks at arrays: not hashable


def take_quantized(arrays: Arrays, name: str, mask: BitMask) -> QuantizedWeight:
    """Return the quantised weight of a linear from what came of a block; ``WireError`` if none."""
    bits = int(arrays.take(f"{name}.bits", ArraySpec("uint8")))
    if bits not in BITS:
        raise WireError(f"a quantised weight has 4 or 8 bits, got {bits}.")
    half, (rows, columns) = 1 << bits - 1, mask.shape
    announced = arrays.announced(f"{name}.scales")
    dtype = next((one for one in SCALES if str(one) == f"torch.{announced.dtype}"), SCALES[0])
    groups = min(announced.shape[-1], columns) if announced.shape else 1
    _check_groups(columns, groups)
    spec = ArraySpec(str(dtype).removeprefix("torch."), (rows, groups))
    words = arrays.take(f"{name}.scales", spec)
    scales = torch.from_numpy(words.view(f"<u{dtype.itemsize}").astype(f"=u{dtype.itemsize}"))
    packed = arrays.take(
        f"{name}.codes", ArraySpec("uint8", (packed_length(mask.survivors, bits),))
    )
    kept = _signed(unpack_lanes(packed, bits, mask.survivors), half)
    zeros = None
    if f"{name}.zeros" in arrays.names:
        size = rows * groups
        lanes = arrays.take(f"{name}.zeros", ArraySpec("uint8", (packed_length(size, bits),)))
        zeros = torch.from_numpy(_signed(unpack_lanes(lanes, bits, size), half).reshape(rows, -1))
    codes = kept.reshape(mask.shape) if kept.size == mask.numel else np.zeros(mask.shape, np.int8)
    if kept.size < mask.numel:
        if zeros is not None:
            codes[:] = np.repeat(zeros.numpy(), columns // groups, axis=1)
        codes[mask.to_bool()] = kept
    return QuantizedWeight(mask, bits, torch.from_numpy(codes), scales.view(dtype), zeros)


def quantized_specs(name: str, shape: tuple[int, int]) -> dict[str, ArraySpec]:
    """Return the largest arrays that a linear's :data:`PARTS` can be."""
    rows, columns = shape
    groups = max(columns // LEAST_GROUP, 1)
    return {
        f"{name}.bits": ArraySpec("uint8"),
        f"{name}.codes": ArraySpec("uint8", (rows * columns,)),
        f"{name}.scales": ArraySpec("float32", (rows, groups)),
        f"{name}.zeros": ArraySpec("uint8", (rows * groups,)),
    }


def _check_groups(columns: int, groups: int) -> None:
    if groups < 1 or columns % groups or (groups > 1 and columns // groups < LEAST_GROUP):
        raise WireError(
            f"The groups of {columns} inputs must be equal and of {LEAST_GROUP} inputs at least, "
            f"or one a row, got {groups} of them."
        )


def _unsigned(codes: NDArray[np.int8], half: int) -> NDArray[np.uint8]:
    return (codes.reshape(-1).astype(np.int16) + half).astype(np.uint8)


def _signed(numbers: NDArray[np.uint8], half: int) -> NDArray[np.int8]:
    return (numbers.astype(np.int16) - half).astype(np.int8)
