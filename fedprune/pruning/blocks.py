"""Walk through a model block by block on one client's samples, and prune it."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedprune.errors import FedpruneError, ModelError, WireError
from fedprune.models.changes import Changes, Recalled
from fedprune.models.device import explain_out_of_memory
from fedprune.models.loading import LoadedModel
from fedprune.models.walk import HiddenStates, ModelWalk
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.recorder import StatisticsRecorder
from fedprune.pruning.statistics import (
    NOTHING,
    Arrays,
    SampleRecording,
    Statistic,
    StatisticKind,
    get_kind,
    shared_inputs,
)
from fedprune.pruning.structured import unit_pruner
from fedprune.pruning.units import find_units
from fedprune.pruning.wanda import able_pruner
from fedprune.wire.changes import Change

T = TypeVar("T")


@dataclass(frozen=True)
class Observed:
    """What was recorded of a block that ran dense."""

    # kind -> name of the linear -> statistic; linears that read the same input share it
    linears: Mapping[str, Mapping[str, Statistic]] = field(default_factory=dict)
    # kind of the whole block -> its arrays
    block: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class StandIn:
    """Text that some inputs of the first block are of, instead of a walk's own samples."""

    samples: tuple[Tensor, ...]  # token ids, each int64 of shape (tokens,)
    # linears of the first block; those that share an input are all here, or none is
    linears: frozenset[str]

    def cut(self, most: int) -> list[Tensor]:
        """Return samples of so many tokens together at most; at least one token."""
        found: list[Tensor] = []
        for sample in self.samples:
            if most <= 0:
                break
            found.append(sample[:most])
            most -= len(found[-1])
        return found


class BlockWalk(ModelWalk):
    """Carries a client's samples through the blocks of a model, one block at a time.

    Each block runs twice a sample: dense, to see what enters its linear maps
    (:meth:`collect`), and pruned, to make the next block's input (:meth:`advance`), as in Wanda
    (https://arxiv.org/abs/2306.11695) and FedPrLLM (https://arxiv.org/abs/2505.13547). Samples may
    be none for pruners that need no inputs.
    """

    stand_in: StandIn | None = None
    """What the first block's inputs are of that would tell the samples' words; None: of these."""
    output_moments: Callable[[int], Mapping[str, Tensor]] = staticmethod(lambda _block: {})
    """Block -> what is known of its linears' outputs, for solvers that look at these."""

    _outlook: HiddenStates | None = None  # what the current block returned, dense

    def advance(self, changes: Mapping[str, Change]) -> None:
        """Go on as `ModelWalk.advance`; a block that was observed need not run again dense."""
        outlook, self._outlook = self._outlook, None
        if outlook is None or changes:
            super().advance(changes)
        else:
            self._hidden = outlook
            self._leave_block()

    def skip(self) -> None:
        """Go on as `ModelWalk.skip`."""
        self._outlook = None
        super().skip()

    def full_name(self, linear: str) -> str:
        """Return the name in the whole model of one of the current block's linear maps."""
        return f"{self.model.layout.prefix}.{self.position}.{linear}"

    def weights(self) -> dict[str, Tensor]:
        """Return the current block's dense weights by name, (d_out, d_in) views on the device."""
        tensors = self.tensors()
        return {
            name: linear.orient(tensors[linear.key])
            for name, linear in self.model.layout.linears(self.position).items()
        }

    def _said_why(self, error: FedpruneError) -> ModelError:
        """Return an error with what is not finite in the block, if that is the reason."""
        found = self.not_finite()
        if not found:
            found = f"something inside `{self.model.layout.prefix}.{self.position}` overflows"
        return ModelError(
            f"{error} {found}. Give a sound checkpoint; where float16 overflows, `model.dtype` "
            "float32 or bfloat16 does not."
        )

    def collect(
        self,
        kind: str = "columns",
        max_width: int | None = None,
        only: Sequence[str] | None = None,
    ) -> dict[str, Statistic]:
        """Run the current block dense on every sample and return what entered its linear maps.

        `kind`: name of the statistic, what a pruner `needs`
        (`fedprune.pruning.statistics.get_kind`). "nothing" runs nothing. `max_width`: of wider
        inputs what the kind names instead is recorded, if it does. `only`: the linears whose inputs
        are looked at; None: all. Returns name of the linear -> sums and token count, on the walk's
        device; linears that read the same input share one object. Empty for "nothing". Raises
        ModelError without samples, when a linear map is never called, or when memory runs out.
        """
        if kind == NOTHING:
            return {}
        recorded = get_kind(kind)
        linears = self.model.layout.linears(self.position)
        if only is not None:
            linears = {name: linears[name] for name in only}
        if not linears:
            return {}

        def run() -> dict[str, Statistic]:
            with StatisticsRecorder(linears, recorded, max_width) as recorder:
                self._run(recorder)
                return recorder.statistics()

        found = self._recorded(run)
        return self._stood_in(found, lambda other, names: other.collect(kind, max_width, names))

    def _run(self, recorder: StatisticsRecorder) -> None:
        """Run the block dense on every sample while somebody watches."""
        if recorder.paired:
            raise ModelError(
                "Inputs are compared with the dense model's on a walk that carries both "
                "(fedprune.pruning.paired.PairedWalk)."
            )
        for _ in self.outputs():
            recorder.end_sample()  # the outputs of the dense block are of no use

    def observe(
        self,
        linears: Sequence[StatisticKind[Any]],
        blocks: Sequence[BlockKind] = (),
        kept: MutableMapping[str, Any] | None = None,
        max_width: int | None = None,
    ) -> Observed:
        """Run the current block dense, once, and record several statistics.

        The walk can then :meth:`advance` without changes at no further cost.

        `linears`: what to record of the inputs of linear maps. `max_width`: as for :meth:`collect`.
        Raises ModelError as :meth:`collect`.
        """
        refs = self.model.layout.linears(self.position)
        site, last = BlockSite.of(self.model, self.position), self.blocks_left == 1
        carried: MutableMapping[str, Any] = {} if kept is None else kept

        def run() -> tuple[Observed, HiddenStates | None]:
            states = None if last else HiddenStates(self._memory)
            with ExitStack() as stack:
                recorders = {
                    kind.name: stack.enter_context(StatisticsRecorder(refs, kind, max_width))
                    for kind in linears
                }
                recordings = {kind.name: kind.start(site, carried) for kind in blocks}
                for recording in recordings.values():
                    for handle in recording.hooks():
                        stack.callback(handle.remove)
                for output in self.outputs():
                    for recorder in recorders.values():
                        recorder.end_sample()
                    for recording in recordings.values():
                        if isinstance(recording, SampleRecording):
                            recording.end_sample()
                    if states is not None:
                        states.append(output)
                found = {name: recorder.statistics() for name, recorder in recorders.items()}
                arrays = {name: recording.close() for name, recording in recordings.items()}
                return Observed(found, arrays), states

        observed, self._outlook = self._recorded(run)
        every = {kind.name: kind for kind in linears}
        stood_in = {
            name: self._stood_in(own, partial(_observed, every[name], max_width))
            for name, own in observed.linears.items()
        }
        return Observed(stood_in, observed.block)

    def _stood_in(
        self,
        found: Mapping[str, Statistic],
        again: "Callable[[BlockWalk, Sequence[str]], Mapping[str, Statistic]]",
    ) -> dict[str, Statistic]:
        """Return statistics in which those of some linears are another text's."""
        if self.position or self.stand_in is None:
            return dict(found)
        names = [name for name in found if name in self.stand_in.linears]
        if not names:
            return dict(found)
        # No more tokens than its own: a client is believed that it has so many.
        samples = self.stand_in.cut(sum(map(len, self._samples)))
        other = type(self)(self.model, samples, self._device, limits=self.limits)
        told = again(other, names)
        return {**found, **{name: told[name] for name in names}}

    def _recorded(self, run: Callable[[], T]) -> T:
        """Return what a pass over all samples finds, its errors explained."""
        if not self._hidden:
            raise ModelError(
                f"There are no calibration inputs for block {self.position}. Raise "
                "`pruner.num_calibration_samples`, or use `pruner=magnitude`, which needs none."
            )
        try:
            with self._explained("collecting statistics of"):
                return self._retried(run)
        except WireError as error:  # sums are exact, and refuse what is no number
            raise self._said_why(error) from error


def _observed(
    kind: StatisticKind[Any], max_width: int | None, walk: BlockWalk, names: Sequence[str]
) -> Mapping[str, Statistic]:
    return walk.observe([kind], max_width=max_width).linears[kind.name]


def prune_block(walk: BlockWalk, pruner: Pruner, spec: BlockSpec) -> dict[str, Change]:
    """Return what a pruner makes of the block where a walk stands; the walk stays there.

    `pruner`: turns each weight and its statistics into a mask, or into survivors with new values.
    Returns name of the linear -> what becomes of it. Raises ModelError as :meth:`BlockWalk.collect`
    and the pruner, which then tells of the linear by name.
    """
    statistics = walk.collect(pruner.needs, only=read_linears(walk.model, pruner))
    return prune_on(walk, statistics, pruner, spec)


def read_linears(model: LoadedModel, pruner: Pruner) -> tuple[str, ...] | None:
    """Return the linears of a block whose inputs a pruner must know; None: all."""
    units = unit_pruner(pruner)
    return None if units is None else (find_units(model, units.structure).linear,)


def prune_on(
    walk: BlockWalk, statistics: Mapping[str, Statistic], pruner: Pruner, spec: BlockSpec
) -> dict[str, Change]:
    """Prune the block where a walk stands on given statistics; else as :func:`prune_block`.

    Where these are of no token, as those of an expert can be, weights go by magnitude.
    """
    with explain_out_of_memory(f"pruning block {walk.position}", *walk.limits.keys):
        structured = unit_pruner(pruner)
        if structured is not None:
            units = find_units(walk.model, structured.structure)
            stats = statistics.get(units.linear)
            return structured.prune_units(walk.weights(), stats, units, spec.sparsity)
        outputs = walk.output_moments(walk.position)
        changes: dict[str, Change] = {}
        for name, weight in walk.weights().items():
            known, where = statistics.get(name), f"`{walk.full_name(name)}`"
            with able_pruner(pruner, known, outputs.get(name), where) as (able, stats):
                changes[name] = able.prune(weight, stats, spec.of(name))
        return changes


def prune_blocks(
    walk: BlockWalk, pruner: Pruner, specs: Mapping[int, BlockSpec]
) -> Iterator[tuple[int, dict[str, Change]]]:
    """Prune consecutive blocks, each on inputs made by the pruned blocks before it.

    `walk`: stands at the first of the blocks; when a block is yielded it stands at the next.
    Nothing comes after a model's last block, so its output is not computed and ``hidden`` ends
    empty. `pruner`: turns each weight and its statistics into a mask, or into survivors with new
    values. `specs`: index of the block -> its sparsity, pattern and comparison group; consecutive
    blocks. Yields index of the block and what becomes of its linears.
    """
    for index, spec in specs.items():
        if index != walk.position or not walk.blocks_left:
            raise ModelError(
                f"Block {index} was asked for, but the walk is at block {walk.position} and has "
                f"{walk.blocks_left} blocks left. Prune the blocks in order."
            )
        changes = prune_block(walk, pruner, spec)
        _go_on(walk, pruner, changes)
        yield index, changes


def pruned_in_passing(walk: BlockWalk, pruner: Pruner, specs: Mapping[int, BlockSpec]) -> Changes:
    """Return what :func:`prune_blocks` makes, each block when it is asked for, none kept.

    For a model that is evaluated once, block by block: blocks must be asked for once each, in
    order.
    """
    made = prune_blocks(walk, pruner, specs)

    def recall(block: int) -> Mapping[str, Change]:
        index, changes = next(made)
        if index != block:
            raise RuntimeError(f"block {block} was asked for, block {index} came next.")
        return changes

    return Recalled(tuple(specs), recall)


def _go_on(walk: BlockWalk, pruner: Pruner, changes: Mapping[str, Change]) -> None:
    """Leave a block as changed, running it only where somebody needs what it returns."""
    if pruner.needs != NOTHING and walk.blocks_left > 1:
        walk.advance(changes)
    else:
        walk.skip()


Groups = tuple[tuple[tuple[str, ...], ...], ...]


def input_groups(model: LoadedModel) -> Groups:
    """Return for each block its distinct inputs, each as the linears that read it.

    `model`: the dense model; unchanged. Returns block -> inputs, in the order of their first linear
    -> names of linears. Raises ModelError if a linear is never called, as experts of a routed block
    may not be.
    """
    walk, columns = BlockWalk(model, [torch.tensor([0, 1])]), get_kind("columns")
    groups = []
    for _ in walk.dense_blocks():
        inputs = walk.observe([columns]).linears[columns.name]
        groups.append(tuple(names for names, _ in shared_inputs(inputs)))
    return tuple(groups)
