"""A walk through pruned blocks that carries the dense model's hidden states beside its own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedprune.models.device import DEFAULT, Limits
from fedprune.models.loading import LoadedModel
from fedprune.models.walk import HiddenStates, ModelWalk
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.recorder import StatisticsRecorder
from fedprune.pruning.statistics import NOTHING, get_kind
from fedprune.wire.changes import Change


class PairedWalk(BlockWalk):
    """Carries samples through blocks as they become, and the same samples through dense ones.

    One block at a time, like any walk: both read the same weights, and only the hidden states are
    there twice.

    `model`, `samples`, `device`, `hidden`, `start`, `limits`: as
    :class:`fedprune.models.walk.ModelWalk`. `dense`: what :attr:`dense_hidden` was at block
    ``start``, as ``hidden`` is of the pruned model. `changes`: what became of the current block so
    far (:meth:`start_from`).
    """

    def __init__(  # noqa: PLR0913 - those of a walk, and one more
        self,
        model: LoadedModel,
        samples: Sequence[Tensor],
        device: str | torch.device = "cpu",
        *,
        hidden: Sequence[Tensor] | None = None,
        dense: Sequence[Tensor] | None = None,
        start: int = 0,
        limits: Limits = DEFAULT,
    ) -> None:
        super().__init__(model, samples, device, hidden=hidden, start=start, limits=limits)
        self._beside = ModelWalk(model, samples, device, hidden=dense, start=start, limits=limits)
        self.changes: Mapping[str, Change] = {}

    @property
    def dense_hidden(self) -> Sequence[Tensor]:
        """Inputs of the current block in the dense model, as `ModelWalk.hidden`."""
        return self._beside.hidden

    def start_from(self, changes: Mapping[str, Change]) -> None:
        """Go on as `ModelWalk.start_from`; the dense model keeps its own weights."""
        self._share()
        super().start_from(changes)
        self.changes = changes

    def advance(self, changes: Mapping[str, Change]) -> None:
        """Run the current block changed, and dense on the dense model's inputs."""
        self._share()
        self._beside.advance({})
        super().advance(changes)
        self.changes = {}

    def skip(self) -> None:
        """Go on as `ModelWalk.skip`, both."""
        self._beside.skip()
        super().skip()

    def dense_tensors(self) -> Mapping[str, Tensor]:
        """Return the current block's parameters and buffers in the dense model, on the device."""
        self._share()
        return self._beside.tensors()

    def targets(self) -> Sequence[Tensor]:
        """Return what the current block gives each sample in the dense model, CPU tensors."""
        self._share()
        states = HiddenStates(self._memory)
        for output in self._beside.outputs():
            states.append(output)
        return states

    def _run(self, recorder: StatisticsRecorder) -> None:
        """Run the block dense on the dense model's inputs, then on its own, batch after batch."""
        self._share()
        if not recorder.paired:
            super()._run(recorder)
            return
        self._beside.batch_by(self._batch_size)
        dense, own = self._beside.outputs(), self.outputs()
        for numbers in self._batches():
            recorder.rows = sum(len(self._samples[number]) for number in numbers)
            recorder.dense_runs = True
            for _ in numbers:
                next(dense)
            recorder.dense_runs = False
            for _ in numbers:
                next(own)

    def _share(self) -> None:
        """Let both walks run the same tensors, which are on the device once."""
        self._beside.take_tensors(self.tensors())


def walk_for(pruner: Pruner) -> type[BlockWalk]:
    """Return the walk on which a pruner's statistics can be recorded."""
    paired = pruner.needs != NOTHING and get_kind(pruner.needs).paired
    return PairedWalk if paired else BlockWalk
