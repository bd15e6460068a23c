"""Gradients of a model's loss, one block's graph at a time.

Hidden states are carried forward through all blocks and kept; then each block, the last one first,
runs again on its inputs and hands the gradient of its output back to its input, as in gradient
checkpointing (Chen et al., arXiv 1604.06174) with every block a segment. So neither memory nor
device ever holds more than one block and one sample's graph of it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedprune.errors import ModelError
from fedprune.models.capture import hidden_of, output_of
from fedprune.models.device import DEFAULT, Limits
from fedprune.models.loading import LoadedModel
from fedprune.models.walk import HiddenStates, ModelWalk, memory_limit

Watch = Callable[[int], AbstractContextManager[object]]
"""What is held around the backward passes of a block, whose hooks see its gradients."""


def can_run_backward(model: LoadedModel) -> bool:
    """Return whether a model's blocks pass on hidden states alone, which is what this follows."""
    return model.layout.passage.plain


def run_backward(
    model: LoadedModel,
    samples: Sequence[Tensor],
    watch: Watch,
    device: str | torch.device = "cpu",
    limits: Limits = DEFAULT,
) -> None:
    """Run every block backward on token sequences, from the last to the first.

    The loss is the sum over a sequence's tokens after the first of their negative log-likelihood.

    `model`: the dense model; unchanged. `samples`: token ids, each int64 of shape (seq_len,), at
    least two. `watch`: called with a block's index, for a context in which that block runs on all
    sequences. `device`: where blocks run; hidden states and their gradients stay on the CPU. Raises
    ModelError if the blocks pass on more than hidden states (:func:`can_run_backward`), or memory
    runs out.
    """
    if not can_run_backward(model):
        raise ModelError(
            "The gradients of this model cannot be found block by block: its blocks pass on more "
            "than hidden states. Set `allocation=owl` or `allocation=uniform`."
        )
    _BackwardWalk(model, samples, device, limits=replace(limits, batch_size=1)).run(watch)


class _BackwardWalk(ModelWalk):
    """Goes through the blocks and back again."""

    def run(self, watch: Watch) -> None:
        """See :func:`run_backward`."""
        order = self.model.layout.passage.order
        # All blocks' inputs are kept, so each set may have its share of the memory.
        self._memory = memory_limit(self.limits.hidden_memory_mb) // (len(order) + 2)
        inputs: dict[int, Sequence[Tensor]] = {}
        with self._explained("running"):
            while self.blocks_left:
                inputs[self.position] = self.hidden
                self.advance({})
            gradients = self._of_loss()
        for block in reversed(order):
            self._position, self._resident = block, None
            with self._explained("running"), watch(block):
                gradients = self._back(inputs.pop(block), gradients, order.index(block))

    def _of_loss(self) -> Sequence[Tensor]:
        """Return the gradients of the loss by the last block's output, one a sample."""
        device, found = self._device, HiddenStates(self._memory)
        outer = {name: tensor.to(device) for name, tensor in self.model.outer_tensors().items()}
        for tokens, hidden in zip(self._samples, self.hidden, strict=True):
            last, text = hidden.to(device).detach().requires_grad_(), tokens.to(device)
            with torch.enable_grad():
                logits = output_of(self.model, text[None], last, outer)[0, :-1]
                loss = functional.cross_entropy(logits.float(), text[1:], reduction="sum")
            found.append(torch.autograd.grad(loss, last)[0].cpu())
        return found

    def _back(
        self, inputs: Sequence[Tensor], gradients: Sequence[Tensor], place: int
    ) -> Sequence[Tensor]:
        """Return the gradients by the current block's input, of those by its output."""
        block, tensors = self.model.layout.blocks[self._position], self.tensors()
        found = HiddenStates(self._memory)
        for calls, hidden, gradient in zip(self._calls, inputs, gradients, strict=True):
            call = calls[place]
            copies = {id(tensor): tensor.to(self._device) for tensor in call.tensors()}
            given = hidden.to(self._device).detach().requires_grad_()
            with torch.enable_grad():
                # A copy: some families add to their input in place.
                args, kwargs = call.bind(given.clone(), copies)
                output = hidden_of(functional_call(block, tensors, args, kwargs))
            back = torch.autograd.grad(output, given, gradient.to(output.device))[0]
            found.append(back.cpu())
        return found
