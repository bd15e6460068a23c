"""The parts of a model that text never reaches: a tower for images, what joins it to the text.

They are found by running the model on text and looking what is called, never by a list of names.
Nobody reads them but who hashes the model; an export takes them from their files as they are.
"""

from transformers import AutoModelForImageTextToText

from fedprune.models.architecture import auto_class
from fedprune.models.loading import LoadedModel


def describe(model: LoadedModel) -> dict[str, object]:
    """Return what results say of an architecture and of what a run leaves alone, as JSON values.

    Returns ``class``; ``loads_with``, the library's class for such models; ``blocks``, where the
    pruned blocks are; ``unread``, the parts that are left as they are, in the model's order:
    ``name`` (``model.vision_tower`` for instance), ``kind`` and number of ``parameters``.
    """
    decoder = model.model
    parts = [
        {
            "name": name,
            "kind": type(part).__name__,
            "parameters": sum(one.numel() for one in part.parameters()),
        }
        for name, part in decoder.named_modules()
        if name in model.layout.unread
    ]
    auto = auto_class(decoder.config)
    if parts and type(decoder.config) in AutoModelForImageTextToText._model_mapping:
        auto = AutoModelForImageTextToText  # some models of images are listed as causal ones too
    return {
        "class": type(decoder).__name__,
        "loads_with": auto.__name__,
        "blocks": model.layout.prefix,
        "unread": parts,
    }
