"""Calibration statistics of a block, gathered while it runs.

Linear maps that read the same tensor (query, key and value; gate and up) share one computation.
"""

from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from fedprune.errors import ModelError
from fedprune.models.layout import LinearRef
from fedprune.pruning.statistics import ColumnStatistics

_CHUNK_ELEMENTS = 1 << 20  # the squares of a chunk stay in a core's cache


class StatisticsRecorder:
    """Adds up the squared inputs of linear maps inside a ``with`` statement.

    Parameters
    ----------
    linears : Mapping[str, LinearRef]
        The maps to watch, by name.
    """

    def __init__(self, linears: Mapping[str, LinearRef]) -> None:
        self._linears = linears
        self._sums: dict[str, Tensor] = {}
        self._tokens = dict.fromkeys(linears, 0)
        self._handles: list[RemovableHandle] = []
        # Weak: an input must not stay in memory longer than the block itself keeps it.
        self._seen: MutableMapping[Tensor, tuple[int, Tensor]] = WeakTensorKeyDictionary()

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

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return the statistics of every map, on the device of its inputs.

        Raises
        ------
        ModelError
            If a map was never called, so that nothing is known about its inputs.
        """
        unused = [name for name, tokens in self._tokens.items() if not tokens]
        if unused:
            raise ModelError(
                f"The decoder block never called {', '.join(unused)}: its inputs are unknown. "
                "Use `pruner=magnitude`, or more calibration samples if inputs are routed."
            )
        return {
            name: ColumnStatistics(self._sums[name], self._tokens[name]) for name in self._linears
        }

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums = self._shared_sums(args[0])
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            self._tokens[name] += args[0].shape[:-1].numel()

        return add

    def _shared_sums(self, inputs: Tensor) -> Tensor:
        """Return the sums of a tensor, computed once unless it was written to since."""
        if inputs in self._seen:
            version, sums = self._seen[inputs]
            if version == inputs._version:
                return sums
        sums = column_square_sums(inputs)
        self._seen[inputs] = (inputs._version, sums)
        return sums


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
