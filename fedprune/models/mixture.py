"""The experts of a mixture: where they are, what belongs to each, and the model with fewer of them.

Nothing here knows a family. Experts are modules that hold fused matrices
(:mod:`fedprune.models.experts`) and are called with what a router chose, as the library's contract
says, or with all tokens for each of them, those not routed to it as zeros (Llama 4). What has a
part for each of them,
their weights and biases, rows of the router, its correction biases, is what comes out in another
size when the architecture is built with fewer; and the key of the configuration that counts them is
the one that does this.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fedprune.config.keys import leaves
from fedprune.errors import ModelError
from fedprune.models.experts import follows_contract, fused_parameters, num_experts
from fedprune.models.loading import LoadedModel
from fedprune.models.passage import is_linear
from fedprune.models.reshape import Reshape, check_reshape

Keep = Mapping[int, tuple[int, ...]]
"""Block -> the experts that remain, ascending; only of blocks that have experts."""


@dataclass(frozen=True)
class Experts:
    """The experts that a router chooses among."""

    name: str  # path inside the block, ``mlp.experts`` for instance
    # what is called as ``experts(hidden_states, top_k_index, top_k_weights)``, or, if there is a
    # ``router``, as ``experts(hidden_states)`` with rows for each expert in turn
    module: nn.Module
    count: int
    # what returns the weight of each expert for each token, zero where it is not chosen; the
    # experts' inputs have been multiplied by it. None where the experts get these weights.
    router: nn.Module | None = None


def find_experts(block: nn.Module) -> Experts | None:
    """Return the experts of a block, None where it has none.

    Raises ModelError if it has several mixtures, or experts that are not stored together.
    """
    modules = dict(block.named_modules())
    found: dict[str, Experts] = {}
    for holder, module in modules.items():
        matrices = fused_parameters(module)
        if matrices:
            one = _called(block, modules, holder, num_experts(module, list(matrices)))
            found[one.name] = one
    if len(found) > 1:
        names = ", ".join(f"`{name}`" for name in found)
        raise ModelError(
            f"A block of {type(block).__name__} has several mixtures of experts, {names}, of which "
            "each has its own router. Prune its weights instead."
        )
    return next(iter(found.values()), None)


def _called(block: nn.Module, modules: Mapping[str, nn.Module], holder: str, count: int) -> Experts:
    """Return how a block calls the experts whose matrices a module of it holds."""
    above, _, _ = holder.rpartition(".")
    for name in (holder, above):
        if follows_contract(modules[name]) or _arguments(modules[name]) == _CHOSEN:
            return Experts(name, modules[name], count)
    # Rows of the router's matrix are experts, and its call returns a weight for each.
    routers = [
        child
        for child in modules[above].children()
        if is_linear(child) and child.get_parameter("weight").shape[0] == count
    ]
    if len(_arguments(modules[holder])) == 1 and len(routers) == 1:
        return Experts(holder, modules[holder], count, routers[0])
    kind = type(modules[above])
    raise ModelError(
        f"`{above}` ({kind.__name__}) in {type(block).__name__} calls its experts, "
        f"{type(modules[holder]).__name__}, in a way of its own: neither with the experts that a "
        "router chose for each token, nor with all tokens for each expert. Prune its weights "
        "instead: leave `strategy` out."
    )


_CHOSEN = ("hidden_states", "top_k_index", "top_k_weights")


def _arguments(module: nn.Module) -> tuple[str, ...]:
    """Return the names of what a module is called with."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


@dataclass(frozen=True)
class Mixture:
    """What a model says of its experts."""

    experts: Mapping[int, int]  # block -> how many experts it has, of blocks that have any
    groups: int  # parts of equal size into which the router divides them; 1: it chooses among all
    open_groups: int  # in how many of these a token's experts are

    @property
    def count(self) -> int:
        """How many experts a block has; the same in all."""
        return next(iter(self.experts.values()))

    def most_dropped(self, top_k: int) -> int:
        """Return how many experts of a block can go at most, where a token needs ``top_k``.

        Each group loses the same number. A router that chooses among groups compares the sums of
        the best two of each, and takes all that a token needs from those that it opens.
        """
        size = self.count // self.groups
        if self.groups == 1:
            return max(self.count - top_k, 0)
        least = max(-(-top_k // self.open_groups), min(size, 2))
        return max(size - least, 0) * self.groups


def find_mixture(model: LoadedModel) -> Mixture:
    """Return what a model's blocks and configuration say of its experts.

    Raises ModelError if it has none that can be reached, or other numbers of them in other blocks.
    """
    kind, found = type(model.model).__name__, {}
    for index, block in enumerate(model.layout.blocks):
        experts = find_experts(block)
        if experts is not None:
            found[index] = experts.count
            _check_routed(f"{model.layout.prefix}.{index}", block, experts)
    if not found:
        raise ModelError(
            f"{kind} has no experts that can be reached: it is dense, or calls its experts in a "
            "way of its own. Prune its weights or blocks, or set `model.path` "
            "to a mixture of experts."
        )
    if len(set(found.values())) > 1:
        raise ModelError(
            f"The blocks of {kind} have {', '.join(map(str, sorted(set(found.values()))))} "
            "experts; one number is taken from all. Prune its weights instead."
        )
    count = next(iter(found.values()))
    groups, opened = router_groups(model.model.config)
    if count % groups or not 1 <= opened <= groups:
        raise ModelError(
            f"The configuration of {kind} divides {count} experts into `n_group` {groups}, of "
            f"which `topk_group` {opened} are open to a token. Give the model's own configuration."
        )
    return Mixture(found, groups, opened)


def router_groups(config: PreTrainedConfig) -> tuple[int, int]:
    """Return into how many groups a router divides experts, and to how many a token may go."""
    text = config.get_text_config()
    groups = getattr(text, "n_group", None) or 1
    return groups, getattr(text, "topk_group", None) or groups


def _check_routed(where: str, block: nn.Module, experts: Experts) -> None:
    """Refuse experts beside which a table says which token goes to which of them."""
    beside = experts.name.rpartition(".")[0]
    for name, tensor in block.state_dict().items():
        if name.startswith(beside) and not tensor.is_floating_point():
            raise ModelError(
                f"`{where}.{name}` holds whole numbers: where a table sends tokens to experts, "
                "none can go. Prune its weights instead."
            )


def without_experts(model: LoadedModel, keep: Keep) -> Reshape:
    """Return the shape of a model with some of its experts.

    `keep`: every block with experts -> those that remain, ascending. Returns to be written by
    :func:`fedprune.models.reshape.export_reshaped`. Raises ModelError if no key of the
    configuration counts the experts, or none can say what is asked.
    """
    mixture = find_mixture(model)
    kept = _check_keep(mixture, keep)
    for key, value in _candidates(model, mixture, kept):
        dims = _cut_dimensions(model, mixture, Reshape({key: value}), kept)
        if dims is not None:
            return Reshape({key: value}, tensors=_cutting(model.layout.prefix, mixture, keep, dims))
    raise ModelError(
        f"No key of the configuration of {type(model.model).__name__} makes a model with {kept} "
        f"experts in place of {mixture.count}: transformers would not load it. Prune its "
        "weights instead."
    )


def _check_keep(mixture: Mixture, keep: Keep) -> int:
    """Return how many experts remain in each block; ``ModelError`` unless some do, and as many."""
    for block, count in mixture.experts.items():
        kept = keep.get(block, ())
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
            raise ModelError(
                f"The experts of block {block} that remain must be some of 0 to {count - 1} in "
                f"ascending order, at least one, got {list(kept)}."
            )
    extra = [block for block in keep if block not in mixture.experts]
    if extra:
        raise ModelError(f"Block {extra[0]} has no experts of which some could remain.")
    counts = sorted({len(kept) for kept in keep.values()})
    if len(counts) > 1:
        raise ModelError(
            f"{' and '.join(map(str, counts))} experts cannot remain in different blocks: a "
            "configuration holds one number for all. Keep the same number in each."
        )
    return counts[0]


def _candidates(model: LoadedModel, mixture: Mixture, kept: int) -> list[tuple[str, Any]]:
    """Return keys of the configuration that may count the experts, each with its new value.

    Those that speak of experts come first; a build with each shows which one it is.
    """
    found: list[tuple[str, Any]] = []
    for key, value in leaves(model.model.config.get_text_config().to_dict()):
        if type(value) is int and value == mixture.count:
            found.append((key, kept))
        elif isinstance(value, list) and value and all(one == mixture.count for one in value):
            found.append((key, [kept] * len(value)))
    return sorted(found, key=lambda entry: "expert" not in entry[0])


def _cut_dimensions(
    model: LoadedModel, mixture: Mixture, reshape: Reshape, kept: int
) -> dict[str, int] | None:
    """Return which dimension of which tensor counts experts; None if it is another key."""
    try:
        new = check_reshape(model, reshape)
    except (ModelError, StrictDataclassError, TypeError, ValueError):  # not what the key is for
        return None
    old, wanted = model.model.state_dict(), new.state_dict()
    dims: dict[str, int] = {}
    for name, tensor in old.items():
        after = tuple(wanted[name].shape) if name in wanted else None
        if after == tuple(tensor.shape):
            continue
        block = _block_of(name, model.layout.prefix)
        if after is None or block not in mixture.experts:
            return None
        dim = _resized(tuple(tensor.shape), after, mixture.count, kept)
        if dim is None:
            return None
        dims[name] = dim
    return dims if _cuts_all(model, mixture, dims) else None


def _resized(before: tuple[int, ...], after: tuple[int, ...], count: int, kept: int) -> int | None:
    """Return the one dimension that went from a multiple of ``count`` to that of ``kept``."""
    if len(before) != len(after):
        return None
    changed = [dim for dim in range(len(before)) if before[dim] != after[dim]]
    (dim,) = changed if len(changed) == 1 else (None,)
    if dim is None or before[dim] % count or after[dim] != before[dim] // count * kept:
        return None
    return dim


def _cuts_all(model: LoadedModel, mixture: Mixture, dims: Mapping[str, int]) -> bool:
    """Whether the weights of the experts of all blocks become fewer."""
    for block in mixture.experts:
        experts = find_experts(model.layout.blocks[block])
        there = f"{model.layout.prefix}.{block}.{experts.name if experts else ''}"
        for path, module in experts.module.named_modules() if experts else ():
            for name in fused_parameters(module):
                if dims.get(".".join(filter(None, (there, path, name)))) != 0:
                    return False
    return True


def _block_of(name: str, prefix: str) -> int | None:
    found = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _cutting(
    prefix: str, mixture: Mixture, keep: Keep, dims: Mapping[str, int]
) -> Callable[[str, Tensor], Tensor]:
    """Return what leaves of each tensor what belongs to the experts that remain."""

    def cut(name: str, tensor: Tensor) -> Tensor:
        block = _block_of(name, prefix)
        if name not in dims or block is None:
            return tensor
        return parts_of(tensor, dims[name], mixture.count, keep[block])

    return cut


def parts_of(tensor: Tensor, dim: int, count: int, kept: Sequence[int]) -> Tensor:
    """Return some of the ``count`` equal parts into which a dimension of a tensor is divided."""
    shape = tuple(tensor.shape)
    parts = tensor.reshape(*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :])
    return parts.index_select(dim, torch.tensor(kept)).flatten(dim, dim + 1)
