"""A decoder that is ready to be pruned: its architecture, and where its weights are."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprune.models.layout import DecoderLayout, find_layout
from fedprune.models.source import HeldWeights, WeightSource


@dataclass
class LoadedModel:
    """A decoder with its tokenizer, the place of its blocks and the source of its weights.

    Parameters
    ----------
    model : PreTrainedModel
        The architecture in evaluation mode. Where the weights are mapped its parameters have no
        data (device "meta"); only buffers that are not saved are real.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    layout : DecoderLayout
        Its blocks.
    path : str
        Folder or Hub id that it came from.
    source : WeightSource
        Gives the weights one by one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: DecoderLayout
    path: str
    source: WeightSource

    def names(self) -> list[str]:
        """Return the names in the model's state, in its order; tied ones under each name."""
        return list(self.model.state_dict())

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the model's state on the CPU, in the type it computes in.

        Raises
        ------
        ModelError
            If its file cannot be read any more.
        """
        return self.source.tensor(name)

    def weight(self, block: int, linear: str) -> Tensor:
        """Return a prunable weight as a (d_out, d_in) view on the CPU."""
        return self.layout.linears(block)[linear].orient(
            self.tensor(self.layout.parameter_name(block, linear))
        )

    def block_tensors(self, block: int) -> dict[str, Tensor]:
        """Return a block's parameters and buffers on the CPU, by their names inside the block."""
        prefix = f"{self.layout.prefix}.{block}."
        module = self.layout.blocks[block]
        saved = module.state_dict()
        return {
            name: self.tensor(prefix + name) if name in saved else tensor.detach()
            for name, tensor in chain(module.named_parameters(), module.named_buffers())
        }

    def outer_tensors(self) -> dict[str, Tensor]:
        """Return what is outside the blocks, embeddings and head, by full name; tied ones once."""
        saved = self.model.state_dict()
        return {
            name: self.tensor(name) if name in saved else tensor.detach()
            for name, tensor in self._outside()
        }

    def prefetch(self, block: int) -> None:
        """Let a block's weights be read in the background; none where there is no such block."""
        if block < len(self.layout.blocks):
            prefix = f"{self.layout.prefix}.{block}."
            self.source.prefetch(prefix + name for name in self.layout.blocks[block].state_dict())

    def _outside(self) -> Iterator[tuple[str, Tensor]]:
        inside = f"{self.layout.prefix}."
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if not name.startswith(inside):
                yield name, tensor


def loaded_from(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str = ""
) -> LoadedModel:
    """Return a model that was made in Python, weights in memory, ready to be pruned.

    Parameters
    ----------
    model : PreTrainedModel
        The model, on the CPU; it is put into evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    path : str
        How it is called.

    Raises
    ------
    ModelError
        If it cannot be pruned block by block.
    """
    model.eval()
    return LoadedModel(model, tokenizer, find_layout(model), path, HeldWeights(model))
