"""Where a model's tensors come from: mapped from its files one by one, or held in memory.

A source gives tensors under the names of the model's state, and says how they are stored.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.names import Origin, as_saved, find_origins, together
from fedprune.models.weights import Stored, map_tensors, prefetch

if TYPE_CHECKING:  # loads torch's compiler, a second that what holds no model need not take
    from transformers import PreTrainedModel

# What older releases stored of what follows from the configuration.
_DERIVED = re.compile(r"rotary_emb\.|\.attn\.(masked_)?bias$|position_ids$")
_log = logging.getLogger("flwr")


@dataclass(frozen=True)
class HeldWeights:
    """Weights in memory: of a model made in Python, or of a checkpoint that cannot be mapped."""

    model: PreTrainedModel

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors themselves: writing to one changes the model."""
        found: dict[str, Tensor] = {}
        for name in names:
            owner, _, attribute = name.rpartition(".")
            found[name] = getattr(self.model.get_submodule(owner), attribute).detach()
        return found

    def prefetch(self, names: Iterable[str]) -> None:
        """Do nothing: all is there."""

    def together(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Yield all names as one group."""
        found = list(names)
        if found:
            yield found

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names that the library would save them by."""
        return as_saved(self.model, tensors)

    def untouched(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors themselves, by those names."""
        return self.stored(self.tensors(names))


@dataclass(frozen=True)
class MappedWeights:
    """Weights in safetensors files; none is in memory for longer than somebody holds it."""

    model: PreTrainedModel  # the architecture; its weights are not looked at
    origins: Mapping[str, Origin]  # name in the model's state -> what its tensor is made of
    # name of a tied weight that is not stored -> the name of its twin that is
    shared: Mapping[str, str]
    types: Mapping[str, torch.dtype]  # name -> the type that the model computes in
    # What was last made of several stored tensors: a block's linears may be asked for one by one.
    _made: deque[tuple[Origin, dict[str, Tensor]]] = field(
        default_factory=lambda: deque(maxlen=2), repr=False, compare=False
    )

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors on the CPU, mapped; copies where the model computes in another type."""
        wanted = {name: self._own(name) for name in names}
        whole: dict[str, Stored] = {}
        found: dict[str, Tensor] = {}
        for name in wanted.values():
            origin = self.origins[name]
            if origin.converter is None:
                whole[name] = origin.parts[0].place
            elif name not in found:
                found |= self._converted(origin)
        found |= map_tensors(whole)
        return {name: found[own].to(self.types[name]) for name, own in wanted.items()}

    def prefetch(self, names: Iterable[str]) -> None:
        """Let tensors that will be asked for next be read in the background."""
        prefetch(part.place for name in names for part in self.origins[self._own(name)].parts)

    def together(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Yield names in groups, most alone, whose tensors can be stored group by group."""
        return together(self.origins, names)

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the state as the files that the model came from hold them.

        Tensors that are stored as one, or one that is stored in pieces, must come together:
        :meth:`together` says which. What the files do not hold keeps its name.
        """
        own = {self._own(name): tensor for name, tensor in tensors.items()}
        found: dict[str, Tensor] = {}
        for names in self.together(own):
            origin = self.origins.get(names[0])
            given = {name: own[name] for name in names}
            whole = origin is not None and set(origin.names) <= set(given)
            found |= origin.stored(self.model, given) if origin and whole else given
        return found

    def untouched(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return what these tensors are stored as, unread and bit for bit, by the stored names."""
        parts = [part for name in names for part in self.origins[self._own(name)].parts]
        return map_tensors({part.place.name: part.place for part in parts})

    def _own(self, name: str) -> str:
        return self.shared.get(name, name)

    def _converted(self, origin: Origin) -> dict[str, Tensor]:
        for known, made in tuple(self._made):
            if known is origin:
                return made
        made = origin.tensors(self.model)
        self._made.append((origin, made))
        return made


WeightSource = HeldWeights | MappedWeights
"""Gives a model's tensors under the names of the model's state, and says how they are stored."""


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the name of every weight that is another one -> the name of that."""
    held = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: other
        for name, other in model.all_tied_weights_keys.items()
        if held.get(name) is held.get(other)
    }


def map_weights(
    source: str, model: PreTrainedModel, files: Mapping[str, Stored], dtype: torch.dtype
) -> MappedWeights | None:
    """Return where a model's weights lie in its files.

    `dtype`: what the model computes in; the library may keep some of its parts in float32. Returns
    none if only the library's own loader knows how to make the weights of what is stored. Raises
    ModelError if weights are missing or have other shapes than the architecture's.
    """
    state = model.state_dict()
    origins, left = find_origins(model, files)
    shared = _shared(state, origins, tied_names(model))
    absent = [name for name in state if name not in origins and name not in shared]
    if absent and left:
        return None  # what is left over may be what is missing, as only the loader knows
    check_complete(source, absent)
    _say_left_out(source, model, left)
    for origin in {id(one): one for one in origins.values()}.values():
        for name, tensor in origin.tensors(model, empty=True).items():
            if name in state and tensor.shape != state[name].shape:
                raise ModelError(
                    f"`model.path` '{source}' cannot be loaded: '{name}' has shape "
                    f"{tuple(tensor.shape)}, its configuration asks for "
                    f"{tuple(state[name].shape)}. Give a complete checkpoint."
                )
    return MappedWeights(model, origins, shared, _types(model, state, dtype))


def stored_apart(model: PreTrainedModel, files: Mapping[str, Stored]) -> bool:
    """Whether weights that the configuration ties are stored both and differ: they count, then."""
    origins, _ = find_origins(model, files)
    for name, other in tied_names(model).items():
        if name in origins and other in origins:
            one = origins[name].tensors(model)[name]
            two = origins[other].tensors(model)[other]
            if one.shape != two.shape or not torch.equal(one, two):
                return True
    return False


def check_complete(source: str, absent: Sequence[str]) -> None:
    """Raise ``ModelError`` if a checkpoint lacks weights."""
    if absent:
        raise ModelError(
            f"`model.path` '{source}' lacks {len(absent)} weights of its architecture, among "
            f"them {', '.join(absent[:3])}. Give a complete checkpoint."
        )


def _shared(
    names: Iterable[str], origins: Mapping[str, Origin], tied: Mapping[str, str]
) -> dict[str, str]:
    """Return a stored twin for each name that has no origin of its own, where there is one."""
    found = {}
    for name in names:
        if name not in origins:
            one = tied.get(name, name)
            twins = (one, *(alias for alias, other in tied.items() if other == one))
            twin = next((twin for twin in twins if twin in origins), None)
            if twin is not None:
                found[name] = twin
    return found


def _types(
    model: PreTrainedModel, state: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """Return what each tensor is computed in: some modules stay in float32, the library says."""
    plan = model._get_dtype_plan(dtype)
    kept = re.compile("|".join(name.replace("*", ".*") for name in plan) or "(?!)")
    return {
        name: torch.float32 if kept.search(name) else tensor.dtype for name, tensor in state.items()
    }


def _say_left_out(source: str, model: PreTrainedModel, left: Mapping[str, Stored]) -> None:
    """Tell the log what a checkpoint holds that its decoder has no place for."""
    known = [re.compile(one) for one in model._keys_to_ignore_on_load_unexpected or ()]
    twins = tied_names(model)
    odd = sorted(
        place.name
        for name, place in left.items()
        if name not in twins and not any(one.search(name) for one in (*known, _DERIVED))
    )
    if odd:
        _log.warning(
            "'%s' stores %d tensor(s) that %s has no place for: they are neither used nor "
            "exported: %s",
            source,
            len(odd),
            type(model).__name__,
            ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else ""),
        )
