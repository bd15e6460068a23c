"""Carry token sequences through a model block by block, whatever becomes of the blocks on the way.

A block's weights are mapped from the model's files when its turn comes and let go when it is over,
and nothing is ever written to them: a block runs with masked copies in place of its own. So neither
memory nor device ever holds more than one block, however many the model has. Hidden states stay in
memory up to a limit, beyond it on the disk.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar, overload

import torch
from torch import Tensor
from torch.func import functional_call

from fedprune.disk import home
from fedprune.errors import ModelError
from fedprune.memory import free_memory
from fedprune.models.capture import (
    BlockCall,
    capture_inputs,
    hidden_of,
    named,
    replayed_call,
)
from fedprune.models.carried import Carried, entries, merged, newly_written
from fedprune.models.changes import changed_tensors
from fedprune.models.device import DEFAULT, Limits, explain_out_of_memory, is_out_of_memory
from fedprune.models.loading import LoadedModel, check_seq_len
from fedprune.models.passage import plain_forward
from fedprune.models.weights import raw_bytes
from fedprune.spill import Spill
from fedprune.wire.changes import Change

# Two sets exist while a block runs, its inputs and its outputs; the rest is for everything else.
_SHARE_OF_FREE_MEMORY = 8


def memory_limit(configured_mb: int | None) -> int:
    """Return how many bytes of hidden states to keep in memory.

    `configured_mb`: `pruner.hidden_memory_mb`; None takes an eighth of the memory that is free now.
    """
    if configured_mb is not None:
        return configured_mb * 1_000_000
    return free_memory() // _SHARE_OF_FREE_MEMORY


@dataclass
class HiddenStates(Sequence[Tensor]):
    """One tensor a sample, in the order in which they are added.

    What does not fit into the limit goes to a file without a name, which nobody else can open and
    which is gone when this object or its process is: hidden states derive from private text.
    """

    limit_bytes: int  # most bytes to keep in memory
    _held: list[Tensor] = field(default_factory=list)
    _spilled: list[tuple[int, torch.dtype, torch.Size]] = field(default_factory=list)
    _bytes: int = 0
    _file: Spill = field(default_factory=Spill)

    def append(self, tensor: Tensor) -> None:
        """Add a sample's hidden states, a CPU tensor.

        Raises ModelError if the disk is full.
        """
        if not self._spilled and self._bytes + tensor.nbytes <= self.limit_bytes:
            self._held.append(tensor)
            self._bytes += tensor.nbytes
        else:
            self._spill(tensor)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._held) + len(self._spilled)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """Return a sample's hidden states; read from the disk if they are there."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        held = len(self._held)
        return self._held[number] if number < held else self._read(*self._spilled[number - held])

    def __iter__(self) -> Iterator[Tensor]:
        """Return the samples one by one."""
        return (self[number] for number in range(len(self)))

    def _spill(self, tensor: Tensor) -> None:
        try:
            start = self._file.write(raw_bytes(tensor))
        except OSError as error:
            raise ModelError(
                f"Hidden states beyond {self.limit_bytes / 1e6:.0f} MB go to '{home()}', which "
                f"cannot take them: {error.strerror}. Free disk space, raise "
                "`pruner.hidden_memory_mb`, or lower `pruner.num_calibration_samples`."
            ) from error
        self._spilled.append((start, tensor.dtype, tensor.shape))

    def _read(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        # Mapped, since all samples may be asked for at once.
        raw = self._file.read(start, shape.numel() * dtype.itemsize)
        return torch.from_numpy(raw).view(dtype).reshape(shape)


_log = logging.getLogger("flwr")
_T = TypeVar("_T")


class ModelWalk:
    """Token sequences on their way through a model's blocks.

    `model`: the dense model; it is never changed. `samples`: token ids, each int64 of shape
    (seq_len,). `device`: where blocks run; hidden states stay on the CPU. `hidden`: inputs of block
    ``start``, one (1, seq_len, d_model) tensor a sample, as an earlier walk over the same samples
    left them in :attr:`hidden`; empty where that walk skipped blocks. `start`: the first block to
    visit; beyond 0 it needs ``hidden`` unless there are no samples. Raises ModelError if a sample
    is too long for the model, or ``start`` and ``hidden`` do not fit model and samples.
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
        """Inputs of the current block, one (1, seq_len, d_model) CPU tensor a sample.

        Of decoders whose blocks pass on more than that, all that the blocks so far left, as bytes
        (:class:`fedprune.models.carried.Carried`).
        """
        return self._hidden

    def start_from(self, changes: Mapping[str, Change]) -> None:
        """Put what an earlier round made of the current block in place of its dense weights.

        `changes`: name of the linear -> what became of it; one that is not named stays dense.
        Raises ModelError if a change is not this block's.
        """
        self._resident = self._changed(changes)

    def advance(self, changes: Mapping[str, Change]) -> None:
        """Run the current block changed on every sample and move on to the next.

        `changes`: name of the linear -> what became of it; one that is not named stays dense.
        Raises ModelError if a change is not this block's, or memory runs out even for one sample;
        the walk then stays where it was.
        """

        def run() -> HiddenStates:
            states = HiddenStates(self._memory)
            for output in self.outputs(tensors):
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

    def dense_blocks(self) -> Iterator[int]:
        """Yield each block when the walk stands at it; nothing is pruned, and the last never run.

        Each runs dense when the next is asked for, so that what is done with it has its inputs.
        """
        while self.blocks_left:
            yield self._position
            if self.blocks_left > 1:
                self.advance({})
            else:
                self.skip()

    @property
    def samples(self) -> Sequence[Tensor]:
        """The token ids that the walk carries."""
        return self._samples

    @property
    def device(self) -> torch.device:
        """Where blocks run."""
        return self._device

    def differentiable(self, number: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what the current block gives one sample with other tensors, with gradients.

        `number`: the sample; the walk must take one at a time (:meth:`batch_by`). `tensors`: name
        inside the block -> tensor as stored, float32 where it is of floating point, on the walk's
        device. Returns float32, shaped like the sample's :attr:`hidden`. Raises ModelError if the
        decoder's blocks pass on more than hidden states.
        """
        passage = self.model.layout.passage
        if not passage.plain or self._position not in passage.order:
            raise ModelError(
                f"block {self._position} passes on more than hidden states, so that its survivors "
                "cannot be fitted. Set reconstruct=none."
            )
        self.batch_by(1)
        call = self._calls[number][passage.order.index(self._position)]

        def single(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, torch.float32 if tensor.is_floating_point() else None)

        copies = {id(tensor): single(tensor) for tensor in call.tensors()}
        args, kwargs = call.bind(single(self._hidden[number]).clone(), copies)
        block = self.model.layout.blocks[self._position]
        output: Tensor = hidden_of(functional_call(block, dict(tensors), args, kwargs))
        return output

    def tensors(self) -> dict[str, Tensor]:
        """Return the current block's parameters and buffers on the device, moved there once."""
        if self._resident is None:
            tensors = self.model.block_tensors(self._position)
            self._resident = {name: tensor.to(self._device) for name, tensor in tensors.items()}
            self.model.prefetch(self._position + 1)
        return self._resident

    def take_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Run the current block with tensors that are on the device already, if none are held."""
        if self._resident is None:
            self._resident = tensors

    def batch_by(self, size: int) -> None:
        """Run so many samples at once from here on."""
        if size != self._batch_size:
            self._batch_size = size
            self._embed(keep=False)

    def not_finite(self) -> str:
        """Say which weights, or inputs, of the current block are NaN or infinite; "" if none.

        Looks through all of them: to be asked where something has gone wrong.
        """
        prefix = f"{self.model.layout.prefix}.{self._position}"
        odd = [name for name, tensor in self.tensors().items() if not _all_finite(tensor)]
        if odd:
            return f"`{prefix}.{odd[0]}` holds NaN or infinite values"
        plain = self.model.layout.passage.plain
        if plain and not all(map(_all_finite, self._hidden)):
            return f"the inputs of `{prefix}` hold NaN or infinite values"
        return ""

    def _changed(self, changes: Mapping[str, Change]) -> dict[str, Tensor]:
        return changed_tensors(self.model.layout, self._position, self.tensors(), changes)

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

    def outputs(self, tensors: dict[str, Tensor] | None = None) -> Iterator[Tensor]:
        """Yield what the current block gives each sample, a CPU tensor as :attr:`hidden` has.

        `tensors`: what it runs with in place of its own (:meth:`tensors`).
        """
        passage, tensors = self.model.layout.passage, tensors or self.tensors()
        if self._position not in passage.order:  # what is never called changes nothing
            yield from self._hidden
        elif passage.plain:
            yield from self._plain_outputs(tensors, passage.order.index(self._position))
        else:
            yield from self._replayed_outputs(tensors)

    def _plain_outputs(self, tensors: dict[str, Tensor], place: int) -> Iterator[Tensor]:
        """Yield outputs where the arguments of all blocks are known from the embeddings."""
        block = self.model.layout.blocks[self._position]
        copies: dict[int, Tensor] = {}
        for numbers, calls in zip(self._batches(), self._calls, strict=True):
            call = calls[place]
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
            yield from _rows(hidden_of(output).cpu(), len(numbers))

    def _replayed_outputs(self, tensors: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield what the blocks so far left, packed, where more than hidden states is passed on."""
        block, outer = self.model.layout.blocks[self._position], self.model.outer_tensors()
        first = self._position == self.model.layout.passage.order[0]
        for sample, packed in zip(self._samples, self._hidden, strict=True):
            with plain_forward(self.model.model):
                call = replayed_call(self.model, sample[None], outer, self._position, packed)
                written = {} if first else Carried.unpack(packed).written
                copies = {id(tensor): tensor.to(self._device) for tensor in call.tensors()}
                args, kwargs = call.bind(None, copies)
                before = entries(named(args, kwargs))
                with torch.no_grad():
                    output = functional_call(block, tensors, args, kwargs)
            after = newly_written(before, entries(named(args, kwargs)))
            yield Carried(output, merged(written, after)).pack()

    def _batches(self) -> Iterator[list[int]]:
        """Yield the numbers of the samples that run at once; those are equally long."""
        most = self._batch_size if self.model.layout.passage.plain else 1
        numbers = range(len(self._samples))
        for _, alike in groupby(numbers, lambda number: len(self._samples[number])):
            run = list(alike)
            yield from (run[at : at + most] for at in range(0, len(run), most))

    def _embed(self, keep: bool, skipped: bool = False) -> list[torch.Size]:
        """Capture the blocks' calls, and the first block's inputs where they are to be kept.

        Returns shape of each sample's input of the first block; empty where that is not plain.
        """
        batches = [] if skipped else list(self._batches())
        tokens = (torch.stack([self._samples[number] for number in batch]) for batch in batches)
        states, forms, calls = HiddenStates(self._memory), [], []
        if not self.model.layout.passage.plain:
            # The first block's inputs are made when it runs; what stands here says that there are.
            for _ in range(0 if skipped or not keep else len(self._samples)):
                states.append(torch.zeros(1, dtype=torch.uint8))
            self._hidden = states if keep else self._hidden
            return []
        sizes = map(len, batches)
        for (embedded, call), size in zip(capture_inputs(self.model, tokens), sizes, strict=True):
            calls.append(call)
            for row in _rows(embedded, size):
                forms.append(row.shape)
                if keep:
                    states.append(row)
        self._calls = calls
        if keep:
            self._hidden = states
        return forms

    def _resumed(self, hidden: Sequence[Tensor], forms: Sequence[torch.Size]) -> Sequence[Tensor]:
        """Return the hidden states to go on with, after checking that they fit."""
        blocks = len(self.model.layout.blocks)
        if not 0 <= self._position < blocks:
            raise ModelError(f"A walk starts at block 0 to {blocks - 1}, got {self._position}.")
        plain, states, given = self.model.layout.passage.plain, HiddenStates(self._memory), []
        if not plain and len(hidden) not in (0, len(self._samples)):
            raise ModelError(
                f"Saved states for block {self._position} are of {len(hidden)} samples, there "
                f"are {len(self._samples)}. Start the run again from block 0."
            )
        for tensor in hidden:
            given.append(tuple(tensor.shape))
            states.append(tensor)
        expected = [tuple(shape) for shape in forms]
        if plain and given != expected:
            raise ModelError(
                f"Saved hidden states for block {self._position} have shapes {given[:3]}, the "
                f"samples need {expected[:3]}. Start the run again from block 0."
            )
        return states


def _rows(batch: Tensor, samples: int) -> tuple[Tensor, ...]:
    """Return the hidden states of each sample of a batch; not all families count samples first."""
    if samples == 1:
        return (batch,)
    if len(batch) != samples:
        raise ModelError(
            f"Hidden states of {samples} samples have the shape {tuple(batch.shape)}: this "
            "architecture does not count samples first. Set `pruner.batch_size` to 1."
        )
    return torch.split(batch, 1)


def _all_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
