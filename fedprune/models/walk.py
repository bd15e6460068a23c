"""Carry token sequences through a model block by block, whatever becomes of the blocks on the way.

A block's weights are mapped from the model's files when its turn comes and let go when it is over,
and nothing is ever written to them: a block runs with masked copies in place of its own. So neither
memory nor device ever holds more than one block, however many the model has.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from fedprune.errors import ModelError
from fedprune.models.calls import BlockCall
from fedprune.models.hidden import HiddenStates, memory_limit
from fedprune.models.inputs import capture_inputs, hidden_of
from fedprune.models.limits import DEFAULT, Limits
from fedprune.models.loaded import LoadedModel
from fedprune.models.loading import check_seq_len
from fedprune.models.masking import changed_tensors
from fedprune.models.memory import explain_out_of_memory, is_out_of_memory
from fedprune.wire.change import Change

_log = logging.getLogger("flwr")
_T = TypeVar("_T")


class ModelWalk:
    """Token sequences on their way through a model's blocks.

    Parameters
    ----------
    model : LoadedModel
        The dense model; it is never changed.
    samples : Sequence[Tensor]
        Token ids, each int64 of shape (seq_len,).
    device : str or torch.device
        Where blocks run; hidden states stay on the CPU.
    hidden : Sequence[Tensor], optional
        Inputs of block ``start``, one (1, seq_len, d_model) tensor a sample, as an earlier walk
        over the same samples left them in :attr:`hidden`; empty where that walk skipped blocks.
    start : int
        The first block to visit; beyond 0 it needs ``hidden`` unless there are no samples.
    limits : Limits
        Batch size and memory.

    Raises
    ------
    ModelError
        If a sample is too long for the model, or ``start`` and ``hidden`` do not fit model and
        samples.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Sequence[Tensor],
        device: str | torch.device = "cpu",
        *,
        hidden: Sequence[Tensor] | None = None,
        start: int = 0,
        limits: Limits = DEFAULT,
    ) -> None:
        for length in {len(sample) for sample in samples}:
            check_seq_len(model.model, length, limits.length_key)
        self.model = model
        self._samples = samples
        self._device = torch.device(device)
        self.limits = limits
        self._memory = memory_limit(limits.hidden_memory_mb)
        self._batch_size = limits.batch_size
        self._position = start
        self._resident: dict[str, Tensor] | None = None
        self._calls: list[list[BlockCall]] = []
        self._hidden: Sequence[Tensor] = ()
        resumed = bool(start) or hidden is not None
        skipped = hidden is not None and not hidden  # there is nothing to go on with
        with explain_out_of_memory("embedding the samples", *limits.keys):
            embedded = self._embed(keep=not resumed, skipped=skipped)
        if resumed:
            self._hidden = self._resumed(hidden or (), embedded)

    @property
    def position(self) -> int:
        """Index of the block whose inputs :attr:`hidden` holds."""
        return self._position

    @property
    def blocks_left(self) -> int:
        """How many blocks are still to visit, the current one included."""
        return len(self.model.layout.blocks) - self._position

    @property
    def num_samples(self) -> int:
        """How many samples the walk carries."""
        return len(self._samples)

    @property
    def hidden(self) -> Sequence[Tensor]:
        """Inputs of the current block, one (1, seq_len, d_model) CPU tensor a sample."""
        return self._hidden

    def start_from(self, changes: Mapping[str, Change]) -> None:
        """Put what an earlier round made of the current block in place of its dense weights.

        Parameters
        ----------
        changes : Mapping[str, BitMask, LinearUpdate or SparseWeight]
            Name of the linear -> what became of it; one that is not named stays dense.

        Raises
        ------
        ModelError
            If a change is not this block's.
        """
        self._resident = self._changed(changes)

    def advance(self, changes: Mapping[str, Change]) -> None:
        """Run the current block changed on every sample and move on to the next.

        Parameters
        ----------
        changes : Mapping[str, BitMask, LinearUpdate or SparseWeight]
            Name of the linear -> what became of it; one that is not named stays dense.

        Raises
        ------
        ModelError
            If a change is not this block's, or memory runs out even for one sample; the walk then
            stays where it was.
        """

        def run() -> HiddenStates:
            states = HiddenStates(self._memory)
            for output in self._outputs(tensors):
                states.append(output)
            return states

        with self._explained("running"):
            tensors = self._changed(changes)
            self._hidden = self._retried(run)
        self._leave_block()

    def skip(self) -> None:
        """Move on without running the block, where nobody needs what it would return."""
        self._hidden = ()
        self._leave_block()

    def _changed(self, changes: Mapping[str, Change]) -> dict[str, Tensor]:
        return changed_tensors(self.model.layout, self._position, self._tensors(), changes)

    def _leave_block(self) -> None:
        self._resident = None
        self._position += 1

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        return explain_out_of_memory(f"{doing} block {self._position}", *self.limits.keys)

    def _retried(self, work: Callable[[], _T]) -> _T:
        """Return what work returns; where memory runs out, begin it anew with half the batch."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self._batch_size == 1:
                    raise
            # Outside of the handler: the exception's frames held what had been computed.
            self._batch_size //= 2
            _log.warning("out of memory: going on with batches of %d samples", self._batch_size)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._embed(keep=False)

    def _tensors(self) -> dict[str, Tensor]:
        """Return the current block's parameters and buffers on the device, moved there once."""
        if self._resident is None:
            tensors = self.model.block_tensors(self._position)
            self._resident = {name: tensor.to(self._device) for name, tensor in tensors.items()}
            self.model.prefetch(self._position + 1)
        return self._resident

    def _outputs(self, tensors: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield the block's output for each sample, computed with the given tensors."""
        block = self.model.layout.blocks[self._position]
        copies: dict[int, Tensor] = {}
        for numbers, calls in zip(self._batches(), self._calls, strict=True):
            call = calls[self._position]
            # What the batch before used too, the shared arguments, is not moved again.
            copies = {
                id(tensor): copies[id(tensor)] if id(tensor) in copies else tensor.to(self._device)
                for tensor in call.tensors()
            }
            states = [self._hidden[number] for number in numbers]
            # A copy even on the CPU: some families add to their input in place.
            batch = (torch.cat(states) if len(states) > 1 else states[0]).to(
                self._device, copy=True
            )
            args, kwargs = call.bind(batch, copies)
            with torch.no_grad():
                output = functional_call(block, tensors, args, kwargs)
            yield from torch.split(hidden_of(output).cpu(), 1)

    def _batches(self) -> Iterator[range]:
        """Yield the numbers of the samples of each batch; those of a batch are equally long."""
        start = 0
        while start < len(self._samples):
            stop = start + 1
            while (
                stop < len(self._samples)
                and stop - start < self._batch_size
                and len(self._samples[stop]) == len(self._samples[start])
            ):
                stop += 1
            yield range(start, stop)
            start = stop

    def _embed(self, keep: bool, skipped: bool = False) -> list[tuple[torch.Size, torch.dtype]]:
        """Capture the blocks' calls, and the first block's inputs where they are to be kept.

        Returns
        -------
        list of tuples
            Shape and dtype of each sample's input of the first block.
        """
        batches = [] if skipped else list(self._batches())
        tokens = (torch.stack([self._samples[number] for number in batch]) for batch in batches)
        states, forms, calls = HiddenStates(self._memory), [], []
        for embedded, call in capture_inputs(self.model, tokens):
            calls.append(call)
            for row in torch.split(embedded, 1):
                forms.append((row.shape, row.dtype))
                if keep:
                    states.append(row)
        self._calls = calls
        if keep:
            self._hidden = states
        return forms

    def _resumed(
        self, hidden: Sequence[Tensor], forms: Sequence[tuple[torch.Size, torch.dtype]]
    ) -> Sequence[Tensor]:
        """Return the hidden states to go on with, after checking that they fit."""
        blocks = len(self.model.layout.blocks)
        if not 0 <= self._position < blocks:
            raise ModelError(f"A walk starts at block 0 to {blocks - 1}, got {self._position}.")
        states, given = HiddenStates(self._memory), []
        for tensor, (_, dtype) in zip(hidden, forms, strict=False):
            given.append(tuple(tensor.shape))
            states.append(tensor.to(dtype))
        expected = [tuple(shape) for shape, _ in forms]
        if given != expected or len(hidden) != len(forms):
            raise ModelError(
                f"Saved hidden states for block {self._position} have shapes {given[:3]}, the "
                f"samples need {expected[:3]}. Start the run again from block 0."
            )
        return states
