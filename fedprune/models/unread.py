"""The parts of a model that text never reaches: a tower for images, what joins it to the text.

They are found by running the model on text and looking what is called, never by a list of names.
Nobody reads them but who hashes the model; an export takes them from their files as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from transformers import AutoModelForImageTextToText

from fedprune.models.architecture import auto_class
from fedprune.models.loading import LoadedModel

if TYPE_CHECKING:  # loads torch's compiler, a second that what holds no model need not take
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class UnreadPart:
    """A part that is left as it is."""

    name: str  # where it is in the model, for example ``model.vision_tower``
    kind: str
    parameters: int  # how many weights it has


def describe(model: LoadedModel) -> dict[str, object]:
    """Return what results say of an architecture and of what a run leaves alone, as JSON values.

    Returns ``class``; ``loads_with``, the library's class for such models; ``blocks``, where the
    pruned blocks are; ``unread``, a list of :class:`UnreadPart` as dicts.
    """
    decoder = model.model
    parts = unread_parts(decoder, model.layout.unread)
    auto = auto_class(decoder.config)
    if parts and type(decoder.config) in AutoModelForImageTextToText._model_mapping:
        auto = AutoModelForImageTextToText  # some models of images are listed as causal ones too
    return {
        "class": type(decoder).__name__,
        "loads_with": auto.__name__,
        "blocks": model.layout.prefix,
        "unread": [asdict(part) for part in parts],
    }


def unread_parts(model: PreTrainedModel, names: Collection[str]) -> list[UnreadPart]:
    """Return the parts of the given names, in the order of the model."""
    return [
        UnreadPart(name, type(part).__name__, sum(one.numel() for one in part.parameters()))
        for name, part in model.named_modules()
        if name in names
    ]
