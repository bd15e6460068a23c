"""What a run left as it was because text never reaches it, and how the whole is loaded."""

from collections.abc import Mapping
from typing import Any

_CAUSAL = "AutoModelForCausalLM"


def left_as_stored(results: Mapping[str, Any]) -> str:
    """Return the parts that were left alone, with their sizes, as text; "" if there are none."""
    parts = results["model"].get("unread") or ()
    return ", ".join(f"{one['name']} ({one['kind']}, {one['parameters']:,})" for one in parts)


def loading_code(results: Mapping[str, Any], folder: str) -> str:
    """Return Python that loads a run's model with what turns its inputs to numbers.

    Parameters
    ----------
    results : Mapping
        The content of `results.json`.
    folder : str
        The folder, or what a reader replaces by it.
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


def left_dense(coverage: Mapping[str, Any]) -> list[str]:
    """Return the matrices in the blocks that stayed dense, each with the reason if it is known."""
    why = coverage.get("why", {})
    return [f"{name} ({why[name]})" if name in why else name for name in coverage["dense"]]
