"""How the files of a checkpoint call a model's tensors, and how the model's state does.

Files may have the names of an older release, miss the name of the body in front, or hold several
tensors for what the library computes with as one, an expert's matrices each for itself. Which of
them is which is asked of the library's own conversions and nowhere else, so that a checkpoint is
read as ``from_pretrained`` reads it, and a model is written under the names that its files had.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.weights import Stored, map_tensors

if TYPE_CHECKING:  # loads torch's compiler, a second that what holds no model need not take
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True)
class Part:
    """One stored tensor in an :class:`Origin`."""

    place: Stored
    pattern: str = ""  # which pattern of the converter it meets; "" without one
    called: str = ""  # its name when the converter gets it, today's where the stored one is older


@dataclass(frozen=True)
class Origin:
    """Stored tensors, and the tensors of a model's state that are made of them."""

    parts: tuple[Part, ...]  # what is stored, in the order in which the library takes it
    # what makes tensors of them; None where one stored tensor is one of the state
    converter: WeightConverter | None
    first: str  # how the library calls the conversion: the first name in the state
    names: tuple[str, ...]  # what comes out, names in the state

    def tensors(self, model: PreTrainedModel, empty: bool = False) -> dict[str, Tensor]:
        """Return the state's tensors: mapped, or new ones if they are made of others.

        `empty`: nothing is read: the tensors are on the device "meta".
        """
        if empty:
            found = [
                torch.empty(part.place.shape, dtype=part.place.dtype, device="meta")
                for part in self.parts
            ]
        else:
            mapped = map_tensors({str(n): part.place for n, part in enumerate(self.parts)})
            found = [mapped[str(n)] for n in range(len(self.parts))]
        if self.converter is None:
            return {self.first: found[0]}
        converter = copy.deepcopy(self.converter)
        for part, tensor in zip(self.parts, found, strict=True):
            converter.add_tensor(self.first, part.place.name, part.pattern, tensor)
        return _converted(converter, self.first, model)

    def stored(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the state as they are stored, name -> tensor.

        What cannot be brought into that form goes under its name in the state, which every loader
        of the library knows as well.
        """
        if self.converter is None:
            return {self.parts[0].place.name: tensors[self.first]}
        groups: dict[str, WeightConverter] = {}
        for name in self.names:
            back = self.converter.reverse_transform()
            renamed, pattern = back.rename_source_key(name)
            if pattern is None:
                return dict(tensors)
            groups.setdefault(renamed, back).add_tensor(renamed, name, pattern, tensors[name])
        prefix = f"{model.base_model_prefix}."
        known: dict[str, str] = {}
        for part in self.parts:
            bare = part.called.removeprefix(prefix)
            known |= dict.fromkeys((part.called, bare, prefix + bare), part.place.name)
        found = {}
        for renamed, back in groups.items():
            for name, tensor in _converted(back, renamed, model).items():
                if name not in known:
                    return dict(tensors)
                found[known[name]] = tensor
        return found


def _converted(converter: WeightConverter, first: str, model: PreTrainedModel) -> dict[str, Tensor]:
    made = converter.convert(first, model=model, config=model.config)
    return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


def find_origins(
    model: PreTrainedModel, files: Mapping[str, Stored]
) -> tuple[dict[str, Origin], dict[str, Stored]]:
    """Return where each tensor of a model's state comes from, as the library would load it.

    `model`: the architecture; its weights may be on the meta device. Returns name in the state ->
    origin, the same one for all that it makes. A tied weight is only under the name that is stored.
    Returns today's name -> what no tensor of the state is made of. Raises ModelError if one of
    several tensors that the library makes one of is missing.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        apply_renamings,
        dot_natural_key,
        rename_source_key,
    )

    state, prefix = model.state_dict(), model.base_model_prefix
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    taken: dict[str, tuple[WeightConverter | None, list[Part]]] = {}
    left: dict[str, Stored] = {}
    for name in sorted(files, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        converter = None if pattern is None else by_pattern[pattern]
        here = taken.setdefault(target, (converter, [])) if target in state else None
        if here is None or here[0] is not converter or (converter is None and here[1]):
            left[target if target not in left else name] = files[name]
        else:
            called = apply_renamings(name, renamings)
            here[1].append(Part(files[name], pattern or "", called))
    found: dict[str, Origin] = {}
    for target, (converter, parts) in taken.items():
        origin = Origin(tuple(parts), converter, target, (target,))
        if converter is not None:
            try:
                made = origin.tensors(model, empty=True)
            except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
                raise ModelError(
                    f"`{target}` is stored as {len(parts)} tensors that do not fit together, "
                    f"among them '{parts[0].place.name}': {error}. Give a complete checkpoint."
                ) from error
            names = tuple(name for name in made if name in state)
            origin = Origin(origin.parts, converter, target, names)
        found |= dict.fromkeys(origin.names, origin)
    return found, left


def together(origins: Mapping[str, Origin], names: Iterable[str]) -> Iterator[list[str]]:
    """Yield names of a model's state in the smallest groups that can be stored by themselves."""
    wanted = dict.fromkeys(names)
    while wanted:
        name = next(iter(wanted))
        group = origins[name].names if name in origins else (name,)
        found = [one for one in dict.fromkeys((name, *group)) if one in wanted]
        for one in found:
            del wanted[one]
        yield found


def as_saved(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return some of a state's tensors as the model's own ``save_pretrained`` would write them."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(tensors)))
