"""A model with fewer units as an ordinary Hugging Face folder of the same architecture.

Blocks are left out and renumbered, matrices become smaller, and the configuration says so. That
this is the model that was meant is not believed but looked at, before a weight is written: an empty
model is built of the new configuration, and each of its blocks must be what the old one was in all
but its number and the sizes that change. So nothing here has to know how a family spreads sliding
windows, mixtures of experts or positions over its blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fedprune.disk import new_folder
from fedprune.errors import ModelError
from fedprune.models.architecture import LAYER_KEYS, readable_errors
from fedprune.models.changes import Changes, changed_tensors
from fedprune.models.empty import empty_weights
from fedprune.models.export import (
    SHARD_BYTES,
    ShardWriter,
    base_model,
    check_changes,
    dtype_name,
    export_model,
    write_configuration,
)
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.kept import KEPT, KeptWriter, chosen, read_kept
from fedprune.models.loading import LoadedModel
from fedprune.models.sources import tied_names

if TYPE_CHECKING:  # loads torch's compiler, a second that what holds no model need not take
    from transformers import PreTrainedModel

ORIGIN = Path("fedprune", "reshape.json")
"""What a reshaped export says about where it came from."""

_FORMAT = {"format": "fedprune-reshape", "version": "1"}
# Keys of a configuration that count blocks from the first one, and those that count from the last.
_FIRST = re.compile(
    r"max_window_layers|first_k_dense_replace|(num|n)_(dense|hash)_layers|moe_layer_start_index"
)
_LAST = re.compile(r"num_kv_shared_layers")
# Lists and tables that are about something else, however long.
_OTHER = re.compile(
    r".*_token_ids?|architectures|id2label|label2id|(rope|loss|quantization|vision|audio)_.*"
)
# Keys that code looks for although configurations need not have them; whether it does, shapes show.
_OPTIONAL = ("head_dim",)
_NUMBER = re.compile(r".*(layer|block).*|.*(idx|index)")


def unchanged(name: str, tensor: Tensor) -> Tensor | None:
    """Return a tensor as it is."""
    return tensor


@dataclass(frozen=True)
class Reshape:
    """What becomes of a model's shape; weights first change as the changes beside it say."""

    # keys of the decoder's part of config.json and their new values, ``intermediate_size`` for
    # instance; ``table.key`` inside a table. The number of blocks follows from `blocks`.
    config: Mapping[str, object] = field(default_factory=dict)
    blocks: tuple[int, ...] | None = None  # the old blocks that remain, ascending; None: all
    # name in the dense model's state and tensor -> its units that remain, None where it goes
    # altogether. A tensor that many names share is asked for once.
    tensors: Callable[[str, Tensor], Tensor | None] = unchanged


def check_reshape(model: LoadedModel, reshape: Reshape) -> PreTrainedModel:
    """Return the architecture without weights that a model becomes, before anything is asked.

    Raises ModelError if blocks are none of the model's, or its architecture has no such shape:
    saying why.
    """
    total = len(model.layout.blocks)
    kept = _kept(model, reshape)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= total:
        raise ModelError(
            f"The blocks that remain must be some of 0 to {total - 1} in ascending order, at least "
            f"one, got {list(kept)}. Remove fewer blocks."
        )
    decoder = model.model
    try:
        with readable_errors(model.path):
            config = _new_config(decoder.config, total, kept, reshape.config)
        with readable_errors(model.path), empty_weights():
            new: PreTrainedModel = type(decoder)._from_config(config, dtype=decoder.dtype)
    except ModelError as error:
        raise _refused(model, f"cannot be built so: {error}") from error
    new.tie_weights()
    new.eval()
    found = new.get_submodule(model.layout.prefix)
    if not isinstance(found, nn.ModuleList) or len(found) != len(kept):
        raise _refused(model, f"still has {len(list(found.children()))} blocks")
    for number, (old, block) in enumerate(zip(kept, found, strict=True)):
        problem = _difference(
            model.layout.blocks[old], block, dict(enumerate(kept)), number, bool(reshape.config)
        )
        if problem:
            raise _refused(model, f"block {old}, as number {number}, would have {problem}")
    return new


def check_shapes(model: LoadedModel, reshape: Reshape) -> None:
    """Raise ``ModelError`` if tensors come out in other shapes than the new architecture's.

    No weight is read: `reshape.tensors` gets tensors without data, and may not ask for any.
    """
    new = check_reshape(model, reshape)
    wanted, missing = new.state_dict(), set(new.state_dict()) - set(tied_names(new))
    state, tied = model.model.state_dict(), tied_names(model.model)
    for name, target in _targets(model, reshape):
        if name in tied:
            continue
        left = reshape.tensors(name, torch.empty(state[name].shape, device="meta"))
        if left is not None:
            _check_fits(model, name, left, wanted.get(target))
            missing.discard(target)
    _check_all_made(model, missing)


def _targets(model: LoadedModel, reshape: Reshape) -> Iterator[tuple[str, str]]:
    """Yield the name of every tensor that remains, and its new one."""
    prefix = f"{model.layout.prefix}."
    moved = {old: new for new, old in enumerate(_kept(model, reshape))}
    for name in model.model.state_dict():
        number, _, inside = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            yield name, name
        elif int(number) in moved:
            yield name, f"{prefix}{moved[int(number)]}.{inside}"


def _check_fits(model: LoadedModel, name: str, left: Tensor, place: Tensor | None) -> None:
    if place is None or place.shape != left.shape:
        expected = "no such tensor" if place is None else tuple(place.shape)
        raise _refused(
            model, f"`{name}` has shape {tuple(left.shape)}, it expects {expected} there"
        )


def _check_all_made(model: LoadedModel, missing: set[str]) -> None:
    if missing:
        raise _refused(model, f"it expects {', '.join(sorted(missing)[:3])}, which nothing made")


def write_model(
    model: LoadedModel,
    changes: Changes,
    reshape: Reshape | None,
    folder: Path,
    mark: Fingerprint | None = None,
) -> None:
    """Write what became of a model: pruned, quantised, or with fewer units.

    Parameters and errors are those of :func:`fedprune.models.export.export_model` where ``reshape``
    is None, otherwise of :func:`export_reshaped`.
    """
    if reshape is None:
        export_model(model, changes, folder, mark)
    else:
        export_reshaped(model, changes, reshape, folder, mark)


def export_reshaped(
    model: LoadedModel,
    changes: Changes,
    reshape: Reshape,
    folder: Path,
    mark: Fingerprint | None = None,
) -> None:
    """Write a model with fewer units as a Hugging Face folder; one block is in memory at a time.

    `model`: the dense model; unchanged. `changes`: block of the dense model -> linear -> what
    becomes of its weights before units go. `folder`: where the model goes: sharded safetensors,
    configuration, tokenizer, :data:`ORIGIN` and :data:`fedprune.models.kept.KEPT`. Raises
    ModelError as :func:`check_reshape`; if tensors come out in other shapes than the
    architecture's; if the folder exists and is not empty or cannot be written.
    """
    check_changes(model, changes)
    new = check_reshape(model, reshape)
    mark = fingerprint(model) if mark is None else mark
    kept = KeptWriter()
    with new_folder(folder) as partial:
        before, after = _write_weights(model, changes, reshape, new, partial, kept)
        write_configuration(model, partial, new.config)
        (partial / ORIGIN).parent.mkdir()
        origin = {
            "model": {
                "weights": mark.weights,
                "config": mark.config,
                "dtype": dtype_name(model),
            },
            "blocks": list(_kept(model, reshape)),
            "num_blocks": len(model.layout.blocks),
            "config": dict(reshape.config),
            "parameters": {"before": before, "after": after},
        }
        text = json.dumps({**_FORMAT, **origin}, indent=2) + "\n"
        (partial / ORIGIN).write_text(text, encoding="utf-8")
        kept.close(partial / KEPT, origin)


def apply_kept(base: str | Path, kept: Path, output: Path) -> None:
    """Make a smaller model of the dense model and what says which of its units remain.

    `base`: the dense model: a folder, a Hub id, or 'demo'. `kept`: the ``kept.safetensors`` of an
    export. `output`: a new folder; its weights become what the export's were, bit for bit. Raises
    ModelError if the file is another model's, damaged, or of a model whose weights have new values;
    if the folder is taken or cannot be written.
    """
    said, remains = read_kept(kept)
    if said.get("survivors") != "kept":
        raise ModelError(
            f"'{kept}' is of a model that was refitted after units went, and says which went, not "
            "the new values. Keep the model's own folder."
        )
    loaded, mark = base_model(base, kept, said.get("model"))
    state = loaded.model.state_dict()
    for name, vectors in remains.items():
        shape = tuple(state[name].shape) if name in state else ()
        if any(dim >= len(shape) or len(one) != shape[dim] for dim, one in vectors.items()):
            raise ModelError(f"'{kept}' is damaged: `{name}` has shape {shape} in the dense model.")

    def cut(name: str, tensor: Tensor) -> Tensor:
        return chosen(tensor, remains.get(name, {}))

    reshape = Reshape(said["config"], tuple(said["blocks"]), cut)
    export_reshaped(loaded, {}, reshape, output, mark)


def read_origin(folder: Path) -> dict[str, Any] | None:
    """Return what an export says about where its shape came from, None if it is not reshaped.

    Raises ModelError if what it says is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {key: found[key] for key in _FORMAT} != _FORMAT:
            raise ValueError("it is of another format or version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"'{path}' is damaged: {error}. Export the model again.") from error
    return dict(found)


def _kept(model: LoadedModel, reshape: Reshape) -> tuple[int, ...]:
    every = tuple(range(len(model.layout.blocks)))
    return every if reshape.blocks is None else tuple(reshape.blocks)


def _refused(model: LoadedModel, why: str) -> ModelError:
    return ModelError(
        f"{type(model.model).__name__} cannot take this shape: {why}. Transformers would not load "
        "it as the model that was meant. Remove other units, or none of these."
    )


def _new_config(
    config: PreTrainedConfig, total: int, kept: Sequence[int], values: Mapping[str, object]
) -> PreTrainedConfig:
    """Return a configuration with fewer blocks and other sizes."""
    whole, text = config.to_dict(), config.get_text_config()
    part = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    table = whole if part is None else whole[part]
    if len(kept) < total:
        _cut(table, total, kept)
        count = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        for key in {count, *LAYER_KEYS}:
            if table.get(key) == total:
                table[key] = len(kept)
    for key, value in values.items():
        *tables, last = text.attribute_map.get(key, key).split(".")
        inside = table
        for name in tables:
            inside = inside.get(name) or {}
        if last not in inside and last not in _OPTIONAL:
            raise ModelError(
                f"The configuration of {type(config).__name__} has no `{key}`: this size of the "
                "model follows from others and cannot change by itself. Remove other units."
            )
        inside[last] = value
    return type(config).from_dict(whole)


def _cut(table: dict[str, Any], total: int, kept: Sequence[int]) -> None:
    """Leave out what a table says of blocks that go, and renumber what it says of others."""
    for key, value in table.items():
        if _OTHER.fullmatch(key) or value is None:
            continue
        if isinstance(value, dict):
            _cut(value, total, kept)
        elif isinstance(value, list | tuple) and len(value) == total:
            table[key] = [value[old] for old in kept]
        elif isinstance(value, str) and len(value) == total and "pattern" in key:
            table[key] = "".join(value[old] for old in kept)
        elif isinstance(value, list | tuple) and _are_blocks(key, value, total):
            table[key] = [new for new, old in enumerate(kept) if old in value]
        elif isinstance(value, int) and _FIRST.fullmatch(key):
            table[key] = sum(old < value for old in kept)
        elif isinstance(value, int) and _LAST.fullmatch(key):
            table[key] = sum(old >= total - value for old in kept)


def _are_blocks(key: str, value: Sequence[Any], total: int) -> bool:
    """Whether a list holds numbers of blocks, ``mlp_only_layers`` for instance."""
    numbers = all(type(one) is int and 0 <= one < total for one in value)
    return bool(value) and numbers and bool(re.search(r"layer|_idx|_indices", key))


def _difference(
    old: nn.Module, new: nn.Module, kept: Mapping[int, int], number: int, resized: bool
) -> str:
    """Say in what a new block differs from the old one that it is made of; "" if in nothing."""
    parts, others = dict(old.named_modules()), dict(new.named_modules())
    if list(parts) != list(others):
        odd = next(iter({*parts} ^ {*others}), "other parts")
        return f"`{odd}` on one side only"
    moved = {old: number for number, old in kept.items()}
    for name, part in parts.items():
        other = others[name]
        if type(part) is not type(other):
            return f"a {type(other).__name__} where a {type(part).__name__} was"
        for key, value in _facts(part):
            now = vars(other).get(key)
            same = type(now) is type(value) and (now == value or now != now)
            sized = resized and isinstance(value, int | tuple) and not isinstance(value, bool)
            if not same and not sized and not _is_number(key, value, now, moved, number):
                return f"`{key}` {now!r} where it was {value!r}"
    return ""


def _facts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's own attributes that are plain values."""
    for key, value in vars(module).items():
        if not key.startswith("_") and isinstance(value, int | float | str | tuple | None):
            yield key, value


def _is_number(key: str, was: Any, now: Any, moved: Mapping[int, int], number: int) -> bool:
    """Whether an attribute is the number of a block, of this one or of one that it refers to."""
    numbers = type(was) is int and type(now) is int and _NUMBER.fullmatch(key)
    if not numbers:
        return False
    here = next(old for old, new in moved.items() if new == number)
    same_distance: bool = was - here == now - number
    return moved.get(was) == now or same_distance


def _write_weights(  # noqa: PLR0913 - what is written, and what of it is noted
    model: LoadedModel,
    changes: Changes,
    reshape: Reshape,
    new: PreTrainedModel,
    folder: Path,
    kept: KeptWriter,
) -> tuple[int, int]:
    """Write every tensor once, block by block; return how many parameters there were and are."""
    state, tied = model.model.state_dict(), tied_names(model.model)
    wanted, twins = new.state_dict(), tied_names(new)
    shards, prefix = ShardWriter(folder, SHARD_BYTES), f"{model.layout.prefix}."
    missing = {name for name in wanted if name not in twins}

    def add(name: str, target: str, tensor: Tensor, dense: Tensor) -> dict[str, Tensor]:
        left = reshape.tensors(name, tensor)
        if left is None:
            return {}
        _check_fits(model, name, left, wanted.get(target))
        kept.add(name, dense, left, reshape.tensors)
        missing.discard(target)
        return {target: left.contiguous()}

    outside = [name for name in state if name not in tied and not name.startswith(prefix)]
    unread = tuple(f"{name}." for name in model.layout.unread)
    for names in model.source.together(outside):
        if all(name.startswith(unread) for name in names):
            shards.add(model.source.untouched(names))
            missing.difference_update(names)
            continue
        whole: dict[str, Tensor] = {}
        for name in names:
            tensor = model.tensor(name)
            whole |= add(name, name, tensor, tensor)
        shards.add(model.source.stored(whole))
    for number, block in enumerate(_kept(model, reshape)):
        inside, there = f"{prefix}{block}.", f"{prefix}{number}."
        done = changes.get(block, {})
        dense = model.block_tensors(block)
        tensors = changed_tensors(model.layout, block, dense, done)
        left: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if inside + name in state and inside + name not in tied:
                left |= add(inside + name, there + name, tensor, dense[name])
        shards.add(model.source.stored(left))
    _check_all_made(model, missing)
    shards.close()
    return _parameters(model.model), _parameters(new)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
