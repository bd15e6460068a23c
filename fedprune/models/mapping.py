"""Which tensor of a checkpoint is which weight of the architecture."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from fedprune.errors import ModelError
from fedprune.models.checkpoint import Stored
from fedprune.models.source import MappedWeights, find_places


def map_weights(
    source: str, model: PreTrainedModel, files: Mapping[str, Stored]
) -> MappedWeights | None:
    """Return where a model's weights lie in its files.

    Parameters
    ----------
    source : str
        Folder or Hub id, for messages.
    model : PreTrainedModel
        The architecture.
    files : Mapping[str, Stored]
        What the files hold, under their names.

    Returns
    -------
    MappedWeights or None
        None if only the library's own loader knows how to make the weights of what is stored, or
        to tell which of tied ones that differ count.

    Raises
    ------
    ModelError
        If weights are missing or have other shapes than the architecture's.
    """
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        return None
    state, stored = model.state_dict(), _renamed(model, files)
    places = find_places(state, stored, model.base_model_prefix, model.all_tied_weights_keys)
    absent = [name for name in state if name not in places]
    if absent and len(set(map(id, places.values()))) < len(stored):
        return None  # what is left over may be what is missing, under an older name
    if _untied(places, model.all_tied_weights_keys):
        return None
    check_complete(source, absent)
    for name, place in places.items():
        if place.shape != tuple(state[name].shape):
            raise ModelError(
                f"`model.path` '{source}' cannot be loaded: '{name}' has shape {place.shape}, its "
                f"configuration asks for {tuple(state[name].shape)}. Give a complete checkpoint."
            )
    return MappedWeights(places, state)


def _untied(places: Mapping[str, Stored], tied: Mapping[str, str]) -> bool:
    """Whether weights that the configuration ties are stored apart and differ."""
    pairs = [(places[name], places[other]) for name, other in tied.items() if name in places]
    return any(one is not two and not torch.equal(one.map(), two.map()) for one, two in pairs)


def check_complete(source: str, absent: Sequence[str]) -> None:
    """Raise ``ModelError`` if a checkpoint lacks weights."""
    if absent:
        raise ModelError(
            f"`model.path` '{source}' lacks {len(absent)} weights of its architecture, among "
            f"them {', '.join(absent[:3])}. Give a complete checkpoint."
        )


def _renamed(model: PreTrainedModel, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return what is stored under today's names: some families' checkpoints have older ones."""
    renamings = [
        one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)
    ]

    def today(name: str) -> str:
        for one in renamings:
            name, _ = one.rename_source_key(name)
        return name

    return {today(name): place for name, place in stored.items()}
