"""Where a decoder keeps its blocks and the weight matrices in them.

Both are found by structure, never by a list of model names: the blocks are the outermost
``nn.ModuleList`` that holds the most weights in linear maps among those that a forward pass on text
calls: an image tower may be larger, and is none of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from fedprune.errors import ModelError
from fedprune.models.experts import by_expert, expert_matrices, num_experts, stacked_experts
from fedprune.models.passage import Passage, is_linear, passage, trace, unread

# Below this share of weights in linear maps, pruning them would miss what the blocks are made of.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class ExpertSlice:
    """Where one expert's matrix is among those of all experts."""

    holder: str  # path of the module inside the block, for example ``mlp.experts``
    parameter: str  # name of its parameter, for example ``down_proj``
    index: int
    transposed: bool  # whether a slice is stored as (d_in, d_out)
    # how many experts' rows the parameter holds one after another; 0 where a dimension of its own
    # counts them
    stacked: int = 0


@dataclass(frozen=True)
class LinearRef:
    """One prunable weight matrix, seen as (d_out, d_in) however the module stores it."""

    # path inside the block, for example ``self_attn.q_proj``; of an expert's matrix with the
    # expert's number, ``mlp.experts.3.gate_up_proj``. Where gate and up are one parameter, they are
    # one matrix: with `pruner.group=layer` their weights compete.
    name: str
    # an ``nn.Linear``, the ``Conv1D`` of GPT-2, which stores (d_in, d_out), or a module of fused
    # experts
    module: nn.Module
    shape: tuple[int, int]  # (d_out, d_in)
    # which slice of a parameter it is; None for a parameter of its own
    expert: ExpertSlice | None = None

    @property
    def key(self) -> str:
        """Name of the parameter among the block's; all experts have one together."""
        expert = self.expert
        return f"{expert.holder}.{expert.parameter}" if expert else f"{self.name}.weight"

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (d_in, d_out)."""
        return self.expert.transposed if self.expert else isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, as the module has it; it may be on the meta device."""
        return self.module.get_parameter(self.expert.parameter if self.expert else "weight")

    def orient(self, stored: Tensor) -> Tensor:
        """Return the matrix as a (d_out, d_in) view of the stored parameter; write through it."""
        one = self.expert
        part = by_expert(stored, one.stacked)[one.index] if one else stored
        return part.T if self.transposed else part


@dataclass(frozen=True)
class DecoderLayout:
    """The decoder blocks of a model, in the order in which they run."""

    prefix: str  # where they are, for example ``model.layers``
    blocks: tuple[nn.Module, ...]
    passage: Passage  # how hidden states go through them
    width: int = 0  # size of the hidden states, 0 if unknown
    # shared, left_out: linear maps that stay dense, by their names in the model: those that share a
    # matrix, and those that a run does not select
    shared: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    # parts outside the blocks that text never reaches, a tower for images for instance
    unread: frozenset[str] = frozenset()
    _known: dict[int, dict[str, LinearRef]] = field(default_factory=dict, repr=False, compare=False)

    def linears(self, block: int) -> dict[str, LinearRef]:
        """Return the prunable matrices of one block by name, in the order of its modules."""
        if block not in self._known:
            dense = self.passage.idle | self.shared | self.left_out
            self._known[block] = {
                linear.name: linear
                for linear in _prunable(self.blocks[block], self.width)
                if f"{self.prefix}.{block}.{linear.name}" not in dense
            }
        return dict(self._known[block])

    def shapes(self) -> list[dict[str, tuple[int, int]]]:
        """Return name -> (d_out, d_in) of every prunable matrix, one mapping a block."""
        return [
            {name: linear.shape for name, linear in self.linears(index).items()}
            for index in range(len(self.blocks))
        ]

    def parameter_name(self, block: int, linear: str) -> str:
        """Return the parameter's name in the model's state, ``model.layers.0.mlp.up_proj.weight``.

        All experts' slices have that of their parameter, ``model.layers.0.mlp.experts.down_proj``.
        """
        linears = self.linears(block)
        key = linears[linear].key if linear in linears else f"{linear}.weight"
        return f"{self.prefix}.{block}.{key}"


def find_layout(model: nn.Module) -> DecoderLayout:
    """Find the decoder blocks of a model.

    `model`: a Hugging Face decoder; its weights may be on the meta device. Returns the blocks;
    every ``nn.Linear`` and ``Conv1D`` inside them is prunable, and every expert's slice of a fused
    parameter, and nothing else: routers stay dense. Raises ModelError for an encoder-decoder, a
    model without blocks or without linear maps in them, one that does not run them once each on
    text, and blocks that keep most weights elsewhere.
    """
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{kind} is an encoder-decoder; only decoders can be pruned. "
            "Set `model.path` to a causal language model."
        )
    width = _width(model)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _linear_numel(module, width) > 0
    ]
    if not lists:
        raise ModelError(
            f"{kind} has nothing to prune: no list of blocks with linear maps was found. "
            "Set `model.path` to a decoder with nn.Linear or Conv1D layers."
        )
    seen = trace(model)
    # A tower for images may be larger than the decoder of the text, which alone is called here.
    called = [entry for entry in lists if seen.order(entry[0])]
    if not called:
        why, error = "", seen.error
        if error is not None:
            why = f" ({type(error).__name__}: {' '.join(str(error).split())})"
        raise ModelError(
            f"{kind} cannot be pruned: its forward pass on token ids alone does not reach "
            f"`{lists[0][0]}`{why}. Set `model.path` to a causal language model."
        )
    # max() keeps the first of equals, and an outer list comes before those inside its blocks.
    prefix, found = max(called, key=lambda entry: _linear_numel(entry[1], width))
    layout = DecoderLayout(
        prefix,
        tuple(found),
        passage(seen, prefix),
        width,
        _shared(prefix, found),
        unread=unread(seen, prefix),
    )
    _check_blocks(kind, layout)
    return layout


def _shared(prefix: str, blocks: nn.ModuleList) -> frozenset[str]:
    """Return the linear maps of a list of blocks whose matrix is another one's too."""
    places: dict[int, list[str]] = {}
    for name, module in blocks.named_modules(remove_duplicate=False):
        if is_linear(module):
            places.setdefault(id(module.get_parameter("weight")), []).append(f"{prefix}.{name}")
    return frozenset(name for names in places.values() if len(names) > 1 for name in names)


def _check_blocks(kind: str, layout: DecoderLayout) -> None:
    where = f"{kind} cannot be pruned block by block: "
    linears = [
        linear for index in range(len(layout.blocks)) for linear in layout.linears(index).values()
    ]
    hidden = next(filter(None, map(_unreached, range(len(layout.blocks)), repeat(layout))), None)
    if hidden is not None:
        raise ModelError(
            f"{where}the matrices of its experts, `{layout.prefix}.{hidden}` for example, are not "
            "kept one expert a slice, as the mixtures of transformers keep theirs, and cannot be "
            "told apart. Set `model.path` to another decoder."
        )
    prunable = sum(rows * columns for rows, columns in (linear.shape for linear in linears))
    # What several blocks have together is there once.
    total = sum({id(p): p.numel() for b in layout.blocks for p in b.parameters()}.values())
    if prunable < _LEAST_SHARE * total:
        raise ModelError(
            f"{where}only {prunable / total:.0%} of the weights in `{layout.prefix}` are in "
            "nn.Linear or Conv1D layers that text passes and no other block shares, or in experts "
            "that can be told apart. "
            "Set `model.path` to another decoder."
        )


def _unreached(index: int, layout: DecoderLayout) -> str | None:
    """Return a matrix of a block's experts where none of theirs is prunable; None for none."""
    reached = [linear.key for linear in layout.linears(index).values()]
    for path, module in layout.blocks[index].named_modules():
        if not _EXPERTS.search(path) or any(key.startswith(f"{path}.") for key in reached):
            continue
        for name, parameter in module.named_parameters():
            matrix = parameter.ndim > 1 and not name.endswith("bias")
            if matrix and not any(map(_ROUTER.search, name.split("."))):
                return f"{index}.{path}.{name}"
    return None


def _prunable(block: nn.Module, width: int) -> Iterator[LinearRef]:
    """Yield a block's prunable matrices."""
    modules = dict(block.named_modules())
    fused = {path: expert_matrices(module, width) for path, module in modules.items()}
    parents = {parent for path, found in fused.items() if found for parent in _above(path)}
    for path, module in modules.items():
        if is_linear(module):
            if not any(_routes(path, parent) for parent in parents):
                first, second = module.get_parameter("weight").shape
                swapped = isinstance(module, Conv1D)
                yield LinearRef(path, module, (second, first) if swapped else (first, second))
            continue
        matrices, stacked = fused[path], stacked_experts(module)
        for index in range(num_experts(module, list(matrices)) if matrices else 0):
            for parameter, transposed in matrices.items():
                whole = module.get_parameter(parameter).detach()
                first, second = by_expert(whole, stacked).shape[1:]
                yield LinearRef(
                    f"{path}.{index}" if parameter == "weight" else f"{path}.{index}.{parameter}",
                    module,
                    (second, first) if transposed else (first, second),
                    ExpertSlice(path, parameter, index, transposed, stacked),
                )


def _above(path: str) -> tuple[str, ...]:
    """Return where the router of fused experts may be: beside them, or beside what wraps them."""
    parts = path.split(".")[:-1]
    wraps = [number for number, part in enumerate(parts) if part == "experts"]
    return (".".join(parts), *(".".join(parts[:number]) for number in wraps))


def _routes(path: str, parent: str) -> bool:
    """Whether a linear map beside fused experts belongs to their router or to a gate on them."""
    inside = path.removeprefix(f"{parent}.") if parent else path
    if parent and inside == path:
        return False
    return _ROUTER.search(inside.partition(".")[0]) is not None


_ROUTER = re.compile(r"router|(^|_)gate$")
_EXPERTS = re.compile(r"(^|[._])experts$")


def _width(model: nn.Module) -> int:
    """Return the size of a model's hidden states, 0 if it does not say."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else config
    size = getattr(text, "hidden_size", 0)
    return size if isinstance(size, int) else 0


def _linear_numel(module: nn.Module, width: int) -> int:
    return sum(
        child.get_parameter("weight").numel()
        if is_linear(child)
        else sum(child.get_parameter(name).numel() for name in expert_matrices(child, width))
        for child in module.modules()
    )
