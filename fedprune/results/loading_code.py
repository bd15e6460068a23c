"""The Python that loads a run's model, as card and page show it."""

from collections.abc import Mapping
from typing import Any

_CAUSAL = "AutoModelForCausalLM"


def loading_code(results: Mapping[str, Any], folder: str) -> str:
    """Return Python that loads a run's model with what turns its inputs to numbers.

    `results`: the content of `results.json`. `folder`: the folder, or what a reader replaces by it.
    """
    auto = results["model"].get("loads_with", _CAUSAL)
    sees = auto != _CAUSAL
    what, kind = ("processor", "AutoProcessor") if sees else ("tokenizer", "AutoTokenizer")
    return (
        f"from transformers import {auto}, {kind}\n\n"
        f"folder = {folder!r}\n"
        f"model = {auto}.from_pretrained(folder)\n"
        f"{what} = {kind}.from_pretrained(folder)"
    )
