"""Calibration statistics of a block, gathered while it runs.

Linear maps that read the same tensor (query, key and value; gate and up) share one record. What a
sample contributes depends on that sample alone, and column sums are added without rounding: so the
statistics do not depend on how samples are spread over clients, nor on their order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from fedprune.errors import ModelError
from fedprune.models.layout import LinearRef
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics, Statistics
from fedprune.wire.sums import ExactSums

Recorded = Literal["columns", "moments"]

_CHUNK_ELEMENTS = 1 << 20  # the squares of a chunk stay in a core's cache


@dataclass
class _Record:
    """What is known of one input, and of the tensor that was last added to it."""

    leader: str
    tokens: int = 0
    sums: ExactSums | None = None
    moments: Tensor | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    # Weak: an input must not stay in memory longer than the block itself keeps it.
    last: TensorWeakRef | None = None
    version: int = -1

    def holds(self, inputs: Tensor) -> bool:
        """Whether this very tensor, unchanged since, was added last."""
        held = self.last() if self.last is not None else None
        return held is inputs and self.version == inputs._version

    def add(self, inputs: Tensor, kind: Recorded) -> None:
        self.last, self.version = TensorWeakRef(inputs), inputs._version
        self.device = inputs.device
        self.tokens += inputs.shape[:-1].numel()
        if kind == "moments":
            self.moments = add_moments(self.moments, inputs)
            return
        if self.sums is None:
            self.sums = ExactSums(inputs.shape[-1])
        self.sums.add(column_square_sums(inputs).cpu().numpy())

    def statistics(self) -> Statistics:
        if self.moments is not None:
            return MomentStatistics(self.moments, self.tokens)
        if self.sums is None:
            raise RuntimeError("nothing was recorded.")
        rounded = torch.from_numpy(self.sums.to_float32()).to(self.device)
        return ColumnStatistics(rounded, self.tokens, self.sums)


class StatisticsRecorder:
    """Adds up the inputs of linear maps inside a ``with`` statement.

    Parameters
    ----------
    linears : Mapping[str, LinearRef]
        The maps to watch, by name.
    kind : {"columns", "moments"}
        Sums of squares a column, or all products of two columns.
    max_width : int or None
        Of wider inputs only sums of squares are taken, whatever the kind.
    """

    def __init__(
        self,
        linears: Mapping[str, LinearRef],
        kind: Recorded = "columns",
        max_width: int | None = None,
    ) -> None:
        self._linears = linears
        self._kinds: dict[str, Recorded] = {
            name: kind if max_width is None or linear.shape[1] <= max_width else "columns"
            for name, linear in linears.items()
        }
        self._records: dict[str, _Record] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Start to watch."""
        for name, linear in self._linears.items():
            self._handles.append(linear.module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to watch."""
        while self._handles:
            self._handles.pop().remove()

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics of every map; maps that share their input share the object.

        Raises
        ------
        ModelError
            If a map was never called, so that nothing is known about its inputs.
        """
        unused = [name for name in self._linears if name not in self._records]
        if unused:
            raise ModelError(
                f"The decoder block never called {', '.join(unused)}: its inputs are unknown. "
                "Use `pruner=magnitude`, or more calibration samples if inputs are routed."
            )
        made = {id(record): record.statistics() for record in self._records.values()}
        return {name: made[id(self._records[name])] for name in self._linears}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            record = self._records.get(name) or self._adopted(name, args[0])
            if record.leader == name:
                record.add(args[0], self._kinds[name])
            elif not record.holds(args[0]):
                raise ModelError(
                    f"'{name}' shared the input of '{record.leader}' for one sample and not for "
                    "another. Such a block cannot be calibrated; use `pruner=magnitude`."
                )

        return add

    def _adopted(self, name: str, inputs: Tensor) -> _Record:
        """Return the record that a map joins at its first call, a new one if it has its own."""
        found = {id(record): record for record in self._records.values() if record.holds(inputs)}
        record = next(iter(found.values()), None) or _Record(name)
        self._records[name] = record
        return record


def column_square_sums(inputs: Tensor) -> Tensor:
    """Return the sum over tokens of each squared input, float32, shape (d_in,).

    Parameters
    ----------
    inputs : Tensor
        Shape (..., d_in), any floating dtype; squares are taken in float32.
    """
    flat = inputs.detach().reshape(-1, inputs.shape[-1])
    total = torch.zeros(flat.shape[1], dtype=torch.float32, device=flat.device)
    for chunk in torch.split(flat, max(1, _CHUNK_ELEMENTS // flat.shape[1])):
        total += chunk.to(torch.float32, copy=True).square_().sum(0)
    return total


def add_moments(total: Tensor | None, inputs: Tensor) -> Tensor:
    """Return ``total`` plus the sum over tokens of x x^T, float32, shape (d_in, d_in).

    Parameters
    ----------
    total : Tensor or None
        Changed in place; None starts at zero.
    inputs : Tensor
        Shape (..., d_in), any floating dtype; products are taken in float32.
    """
    flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(torch.float32)
    if total is None:
        return flat.T @ flat
    return total.addmm_(flat.T, flat)
