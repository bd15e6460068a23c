"""Carry samples through a model block by block, whatever becomes of the blocks on the way.

The dense model may be shared by many clients of a process, so nothing is ever written to it: a
block runs with masked copies of its weights in place of its own, and only that one block is on the
device.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call

from fedprune.errors import ModelError
from fedprune.models.inputs import capture_inputs, hidden_of
from fedprune.models.loading import LoadedModel, check_seq_len
from fedprune.models.masking import masked_weight, pair_masks
from fedprune.models.memory import explain_out_of_memory
from fedprune.pruning.recorder import Recorded, StatisticsRecorder
from fedprune.pruning.statistics import Statistics
from fedprune.wire.change import Change

MEMORY_KEYS = ("pruner.seq_len", "pruner.num_calibration_samples", "pruner.device")


class BlockWalk:
    """Carries a client's samples through the blocks of a model, one block at a time.

    Each block runs twice a sample: dense, to see what enters its linear maps
    (:meth:`collect`), and pruned, to make the next block's input (:meth:`advance`), as in Wanda
    (https://arxiv.org/abs/2306.11695) and FedPrLLM (https://arxiv.org/abs/2505.13547).

    Parameters
    ----------
    model : LoadedModel
        The dense model; it is never changed.
    samples : Sequence[Tensor]
        Token ids, each int64 of shape (seq_len,). May be empty for pruners that need no inputs.
    device : str or torch.device
        Where blocks run; hidden states and masks stay on the CPU.
    hidden : Sequence[Tensor], optional
        Inputs of block ``start``, one (1, seq_len, d_model) tensor a sample, as an earlier walk
        over the same samples left them in :attr:`hidden`; empty where that walk skipped blocks.
    start : int
        The first block to visit; beyond 0 it needs ``hidden`` unless there are no samples.

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
        hidden: Sequence[Tensor] | None = None,
        start: int = 0,
    ) -> None:
        for sample in samples:
            check_seq_len(model.model, len(sample), "pruner.seq_len")
        gone = hidden is not None and not hidden  # skipped over: there is nothing to go on with
        model.model.eval()
        self._model = model
        self._device = torch.device(device)
        self._position = start
        self._num_samples = len(samples)
        self._resident: dict[str, Tensor] | None = None
        with explain_out_of_memory("embedding the calibration samples", *MEMORY_KEYS):
            captured = capture_inputs(model, () if gone else samples)
        self._calls = captured.calls
        self._hidden = captured.hidden
        if start or hidden is not None:
            self._hidden = self._resumed(hidden or ())

    @property
    def position(self) -> int:
        """Index of the block whose inputs :attr:`hidden` holds."""
        return self._position

    @property
    def blocks_left(self) -> int:
        """How many blocks are still to visit, the current one included."""
        return len(self._model.layout.blocks) - self._position

    @property
    def num_samples(self) -> int:
        """How many samples the walk carries."""
        return self._num_samples

    @property
    def hidden(self) -> list[Tensor]:
        """Inputs of the current block, one (1, seq_len, d_model) CPU tensor a sample."""
        return self._hidden

    def full_name(self, linear: str) -> str:
        """Return the name in the whole model of one of the current block's linear maps."""
        return f"{self._model.layout.prefix}.{self._position}.{linear}"

    def weights(self) -> dict[str, Tensor]:
        """Return the current block's dense weights by name, (d_out, d_in) views on the device."""
        tensors = self._tensors()
        return {
            name: linear.orient(tensors[linear.key])
            for name, linear in self._model.layout.linears(self._position).items()
        }

    def collect(
        self, kind: Recorded = "columns", max_width: int | None = None
    ) -> dict[str, Statistics]:
        """Run the current block dense on every sample and return what entered its linear maps.

        Parameters
        ----------
        kind : {"columns", "moments"}
            Sums of squares a column, or all products of two columns.
        max_width : int or None
            Of wider inputs only sums of squares are taken, whatever the kind.

        Returns
        -------
        dict[str, ColumnStatistics or MomentStatistics]
            Name of the linear -> float32 sums and token count, on the walk's device; linears that
            read the same input share one object.

        Raises
        ------
        ModelError
            Without samples, when a linear map is never called, or when memory runs out.
        """
        if not self._hidden:
            raise ModelError(
                f"There are no calibration inputs for block {self._position}. Raise "
                "`pruner.num_calibration_samples`, or use `pruner=magnitude`, which needs none."
            )
        linears = self._model.layout.linears(self._position)
        recorder = StatisticsRecorder(linears, kind, max_width)
        with self._explained("collecting statistics of"), recorder:
            for _ in self._outputs(self._tensors()):
                pass  # the outputs of the dense block are of no use
            return recorder.statistics()

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

    def advance(self, masks: Mapping[str, Change]) -> None:
        """Run the current block pruned on every sample and move on to the next.

        Parameters
        ----------
        masks : Mapping[str, BitMask, LinearUpdate or SparseWeight]
            Name of the linear -> what became of it; one that is not named stays dense.

        Raises
        ------
        ModelError
            If a mask is not this block's, or memory runs out; the walk then stays where it was.
        """
        with self._explained("running"):
            self._hidden = list(self._outputs(self._changed(masks)))
        self._leave_block()

    def skip(self) -> None:
        """Move on without running the block, where nobody needs what it would return."""
        self._hidden = []
        self._leave_block()

    def _changed(self, changes: Mapping[str, Change]) -> dict[str, Tensor]:
        """Return the current block's tensors, the weights of some of its linears changed."""
        pairs = pair_masks(self._model.layout, self._position, changes)
        tensors = dict(self._tensors())
        for linear, change in pairs:
            tensors[linear.key] = masked_weight(tensors[linear.key], linear, change)
        return tensors

    def _leave_block(self) -> None:
        self._resident = None
        self._position += 1

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        return explain_out_of_memory(f"{doing} block {self._position}", *MEMORY_KEYS)

    def _tensors(self) -> dict[str, Tensor]:
        """Return the current block's parameters and buffers on the device, moved there once."""
        if self._resident is None:
            block = self._model.layout.blocks[self._position]
            self._resident = {
                name: self._moved(tensor)
                for name, tensor in chain(block.named_parameters(), block.named_buffers())
            }
        return self._resident

    def _outputs(self, tensors: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield the block's output for each sample, computed with the given tensors."""
        block = self._model.layout.blocks[self._position]
        copies: dict[int, Tensor] = {}
        for hidden, calls in zip(self._hidden, self._calls, strict=True):
            call = calls[self._position]
            # What the sample before used too, the shared arguments, is not moved again.
            copies = {
                id(tensor): copies[id(tensor)] if id(tensor) in copies else self._moved(tensor)
                for tensor in call.tensors()
            }
            # A copy even on the CPU: some families add to their input in place.
            args, kwargs = call.bind(hidden.to(self._device, copy=True), copies)
            with torch.no_grad():
                output = functional_call(block, tensors, args, kwargs)
            yield hidden_of(output).cpu()

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._device)

    def _resumed(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the hidden states to go on with, after checking that they fit."""
        blocks = len(self._model.layout.blocks)
        if not 0 <= self._position < blocks:
            raise ModelError(f"A walk starts at block 0 to {blocks - 1}, got {self._position}.")
        given = [tuple(tensor.shape) for tensor in hidden]
        expected = [tuple(tensor.shape) for tensor in self._hidden]
        if given != expected:
            raise ModelError(
                f"Saved hidden states for block {self._position} have shapes {given[:3]}, the "
                f"samples need {expected[:3]}. Start the run again from block 0."
            )
        return [
            tensor.to(embedded.dtype) for tensor, embedded in zip(hidden, self._hidden, strict=True)
        ]
