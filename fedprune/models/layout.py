"""Where a decoder keeps its blocks and the weight matrices in them.

Both are found by structure, never by a list of model names: the blocks are the outermost
``nn.ModuleList`` that holds the most weights in linear maps, within the part that reads text where
a model has others, an image tower for example, which may be larger.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedprune.errors import ModelError

# Below this share of weights in linear maps, pruning them would miss what the blocks are made of.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class LinearRef:
    """One prunable weight matrix, seen as (d_out, d_in) however the module stores it.

    Parameters
    ----------
    name : str
        Path inside the block, for example ``self_attn.q_proj``.
    module : nn.Module
        An ``nn.Linear``, or the ``Conv1D`` of GPT-2, which stores (d_in, d_out).
    shape : tuple[int, int]
        (d_out, d_in).
    """

    name: str
    module: nn.Module
    shape: tuple[int, int]

    @property
    def key(self) -> str:
        """Name of the weight among the block's parameters."""
        return f"{self.name}.weight"

    @property
    def transposed(self) -> bool:
        """Whether the module stores the weight as (d_in, d_out)."""
        return isinstance(self.module, Conv1D)

    def orient(self, stored: Tensor) -> Tensor:
        """Return a view that turns (d_out, d_in) into the stored orientation, and back."""
        return stored.T if self.transposed else stored


@dataclass(frozen=True)
class DecoderLayout:
    """The decoder blocks of a model, in the order in which they run.

    Parameters
    ----------
    prefix : str
        Where they are, for example ``model.layers``.
    blocks : tuple[nn.Module, ...]
        The blocks themselves.
    """

    prefix: str
    blocks: tuple[nn.Module, ...]

    def linears(self, block: int) -> dict[str, LinearRef]:
        """Return the prunable matrices of one block by name, in the order of its modules."""
        return {
            name: LinearRef(name, module, _shape(module))
            for name, module in self.blocks[block].named_modules()
            if _is_linear(module)
        }

    def shapes(self) -> list[dict[str, tuple[int, int]]]:
        """Return name -> (d_out, d_in) of every prunable matrix, one mapping a block."""
        return [
            {name: linear.shape for name, linear in self.linears(index).items()}
            for index in range(len(self.blocks))
        ]

    def parameter_name(self, block: int, linear: str) -> str:
        """Return the weight's name in the model's state, ``model.layers.0.mlp.up_proj.weight``."""
        return f"{self.prefix}.{block}.{linear}.weight"


def find_layout(model: nn.Module) -> DecoderLayout:
    """Find the decoder blocks of a model.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face decoder; its weights may be on the meta device.

    Returns
    -------
    DecoderLayout
        The blocks; every ``nn.Linear`` and ``Conv1D`` inside them is prunable, and nothing else.

    Raises
    ------
    ModelError
        For an encoder-decoder, a model without blocks or without linear maps in them, and blocks
        that share weights, differ in class, or keep most weights outside linear maps.
    """
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{kind} is an encoder-decoder; only decoders can be pruned. "
            "Set `model.path` to a causal language model."
        )
    lists = _of_the_text(
        model,
        [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and _linear_numel(module) > 0
        ],
    )
    if not lists:
        raise ModelError(
            f"{kind} has nothing to prune: no list of blocks with linear maps was found. "
            "Set `model.path` to a decoder with nn.Linear or Conv1D layers."
        )
    # max() keeps the first of equals, and an outer list comes before those inside its blocks.
    depth = _text_depth(model)
    prefix, found = max(lists, key=lambda one: (len(one[1]) == depth, _linear_numel(one[1])))
    layout = DecoderLayout(prefix, tuple(found))
    _check_blocks(kind, layout)
    return layout


def _text_depth(model: nn.Module) -> int | None:
    """Return how many blocks a model's configuration gives its text decoder; None if none."""
    if not isinstance(model, PreTrainedModel):
        return None
    text = model.config.get_text_config(decoder=True)
    depth: int | None = getattr(text, "num_hidden_layers", None)
    return depth


def _of_the_text(
    model: nn.Module, lists: list[tuple[str, nn.ModuleList]]
) -> list[tuple[str, nn.ModuleList]]:
    """Return the lists whose next outer model has the text's configuration; all if none has.

    Every part of a model of transformers is a model with its own kind of configuration.
    """
    if not isinstance(model, PreTrainedModel):
        return lists
    text = type(model.config.get_text_config(decoder=True))
    parts = {
        name: type(part.config)
        for name, part in model.named_modules()
        if isinstance(part, PreTrainedModel)
    }

    def owner(name: str) -> type:
        while name not in parts:
            name = name.rpartition(".")[0]
        return parts[name]

    return [(name, found) for name, found in lists if owner(name) is text] or lists


def _check_blocks(kind: str, layout: DecoderLayout) -> None:
    where = f"{kind} cannot be pruned block by block: "
    classes = sorted({type(block).__name__ for block in layout.blocks})
    if len(classes) > 1:
        raise ModelError(f"{where}`{layout.prefix}` mixes blocks of classes {', '.join(classes)}.")
    weights = [
        linear.module.get_parameter("weight")
        for index in range(len(layout.blocks))
        for linear in layout.linears(index).values()
    ]
    if len({id(weight) for weight in weights}) < len(weights):
        raise ModelError(f"{where}linear maps in `{layout.prefix}` share weights.")
    prunable = sum(weight.numel() for weight in weights)
    total = sum(p.numel() for block in layout.blocks for p in block.parameters())
    if prunable < _LEAST_SHARE * total:
        raise ModelError(
            f"{where}only {prunable / total:.0%} of the weights in `{layout.prefix}` are in "
            "nn.Linear or Conv1D layers (fused experts, for example, are not). "
            "Set `model.path` to a dense decoder."
        )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach()


def _shape(module: nn.Module) -> tuple[int, int]:
    first, second = _weight(module).shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _linear_numel(module: nn.Module) -> int:
    return sum(_weight(child).numel() for child in module.modules() if _is_linear(child))
