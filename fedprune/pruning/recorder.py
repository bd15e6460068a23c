"""Calibration statistics of a block, gathered while it runs.

Linear maps that read the same tensor (query, key and value; gate and up) share one record. Of fused
experts each has records of its own, of the tokens routed to it: there may be none. What a sample
contributes depends on that sample alone, and column sums are added without rounding: so the
statistics do not depend on how samples are spread over clients, nor on their order.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from fedprune.errors import ModelError, WireError
from fedprune.models.experts import watched_experts
from fedprune.models.layout import LinearRef
from fedprune.pruning.statistics import (
    PairedRecording,
    Recording,
    SampleRecording,
    Statistic,
    StatisticKind,
    get_kind,
)


@dataclass
class _Record:
    """What is known of one input, and of the tensor that was last added to it."""

    leader: str
    recording: Recording[Any]
    # Weak: an input must not stay in memory longer than the block itself keeps it.
    last: TensorWeakRef | None = None
    version: int = -1

    def holds(self, inputs: Tensor) -> bool:
        """Whether this very tensor, unchanged since, was added last."""
        held = self.last() if self.last is not None else None
        return held is inputs and self.version == inputs._version

    def add(self, inputs: Tensor, dense: Tensor | None) -> None:
        self.last, self.version = TensorWeakRef(inputs), inputs._version
        if dense is not None and isinstance(self.recording, PairedRecording):
            self.recording.compare(inputs, dense)
        else:
            self.recording.add(inputs)


@contextmanager
def watched(
    linears: Mapping[str, LinearRef],
    hook: Callable[[str, nn.Module], RemovableHandle],
    add: Callable[[str, Tensor], None],
    gradients: bool = False,
) -> Iterator[None]:
    """Watch linear maps: modules of their own by a hook, slices of fused experts by ``add``.

    ``add`` is told the linear and the inputs of a call, or the gradients at its outputs.
    """
    with ExitStack() as stack:
        routed: dict[int, list[LinearRef]] = {}
        for name, linear in linears.items():
            if linear.expert is None:
                stack.callback(hook(name, linear.module).remove)
            else:
                routed.setdefault(id(linear.module), []).append(linear)
        for group in routed.values():
            slices = {linear.name: linear.expert for linear in group if linear.expert}
            names = {(one.parameter, one.index): name for name, one in slices.items()}
            lies = {one.parameter: one.transposed for one in slices.values()}
            take = partial(_taken, names, add)
            stack.enter_context(watched_experts(group[0].module, lies, take, gradients=gradients))
        yield


def _taken(
    names: Mapping[tuple[str, int], str],
    add: Callable[[str, Tensor], None],
    parameter: str,
    expert: int,
    values: Tensor,
) -> None:
    name = names.get((parameter, expert))
    if name is not None:
        add(name, values)


class StatisticsRecorder:
    """Adds up the inputs of linear maps inside a ``with`` statement.

    `linears`: the maps to watch, by name. `max_width`: of wider inputs ``kind.instead`` is
    recorded, if there is one. `paired`: whether inputs are to be compared with the dense model's.
    `dense_runs`: set while a batch runs with the dense model's inputs: what enters linears then is
    not recorded, but compared with what does when the same batch runs next. `rows`: tokens of that
    batch; inputs of fewer, those of experts, are not compared.
    """

    def __init__(
        self,
        linears: Mapping[str, LinearRef],
        kind: StatisticKind[Any],
        max_width: int | None = None,
    ) -> None:
        self._linears = linears
        self._kind = kind
        self._narrow = get_kind(kind.instead) if kind.instead else kind
        self._max_width = max_width
        self._records: dict[str, _Record] = {}
        self._watching = ExitStack()
        self._dense: dict[str, Tensor] = {}
        self.paired = kind.paired
        self.dense_runs = False
        self.rows = 0

    def __enter__(self) -> Self:
        """Start to watch."""
        for name, linear in self._linears.items():
            if linear.expert is not None:
                self._records[name] = _Record(name, self._start(name))

        def hook(name: str, module: nn.Module) -> RemovableHandle:
            return module.register_forward_pre_hook(self._hook(name))

        def add(name: str, inputs: Tensor) -> None:
            if not self.dense_runs:
                self._added(name, self._records[name], inputs)

        self._watching.enter_context(watched(self._linears, hook, add))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch."""
        self._watching.close()

    def end_sample(self) -> None:
        """Tell records that must know it that a sample is over."""
        for record in {id(one): one for one in self._records.values()}.values():
            if isinstance(record.recording, SampleRecording):
                record.recording.end_sample()

    def statistics(self) -> dict[str, Statistic]:
        """Return the statistic of every map; maps that share their input share the object.

        Raises ModelError if a map was never called, so that nothing is known about its inputs.
        """
        unused = [name for name in self._linears if name not in self._records]
        if unused:
            raise ModelError(
                f"The decoder block never called {', '.join(unused)}: its inputs are unknown. "
                "Use `pruner=magnitude`, or more calibration samples if inputs are routed."
            )
        closed: dict[int, Statistic] = {
            id(record): record.recording.close()
            for record in {id(one): one for one in self._records.values()}.values()
        }
        return {name: closed[id(self._records[name])] for name in self._linears}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self.dense_runs:
                if args[0].shape[:-1].numel() == self.rows:
                    self._dense[name] = args[0].clone()  # some blocks change it in place later
                return
            record = self._records.get(name) or self._adopted(name, args[0])
            if record.leader == name:
                self._added(name, record, args[0])
            # Zeros add nothing: Zaya starts a sequence with a token of them.
            elif not record.holds(args[0]) and bool(args[0].any()):
                raise ModelError(
                    f"'{name}' shared the input of '{record.leader}' for one sample and not for "
                    "another. Such a block cannot be calibrated; use `pruner=magnitude`."
                )

        return add

    def _added(self, name: str, record: _Record, inputs: Tensor) -> None:
        try:
            dense = self._dense.pop(name, None)
            record.add(inputs, dense if inputs.shape[:-1].numel() == self.rows else None)
        except WireError:
            raise WireError(f"The inputs of `{name}` are not finite.") from None

    def _adopted(self, name: str, inputs: Tensor) -> _Record:
        """Return the record that a map joins at its first call, a new one if it has its own."""
        found = {id(record): record for record in self._records.values() if record.holds(inputs)}
        record = next(iter(found.values()), None) or _Record(name, self._start(name))
        self._records[name] = record
        return record

    def _start(self, name: str) -> Recording[Any]:
        """Return an empty record of a map's input."""
        width = self._linears[name].shape[1]
        wide = self._max_width is not None and width > self._max_width
        return (self._narrow if wide else self._kind).start_at(name, width)
