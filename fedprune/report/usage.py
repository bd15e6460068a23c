"""How to load the model, and the configuration that makes it again."""

import shlex
from pathlib import Path

from fedprune.report.markup import Html, join, tag
from fedprune.report.tables import folded


def load(folder: Path) -> Html:
    """Return code that loads the exported model and a command that measures it again."""
    if not (folder / "model").is_dir():
        return tag("p", "The model was not kept.")
    model = str(folder / "model")
    python = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"folder = {model!r}\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)"
    )
    shell = f"fedprune evaluate {shlex.quote(model)}"
    aid = "An ordinary Hugging Face folder: dense safetensors with real zeros. A click selects all."
    return join(
        [
            tag("p", aid, class_="aid"),
            code("Python", python),
            code("Measure it again", shell),
        ]
    )


def configuration(config: str) -> Html:
    """Return the resolved configuration, folded."""
    return folded("Resolved configuration", code("config.yaml", config), class_="printed")


def code(label: str, content: str) -> Html:
    """Return code that one click selects whole."""
    return tag("pre", tag("code", content), tabindex="0", role="region", aria_label=label)
