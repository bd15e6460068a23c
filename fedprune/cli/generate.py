"""`fedprune generate`: a model with random weights, to measure memory and time on."""

import time
from pathlib import Path

from rich.console import Console

from fedprune.models.generate import check_room, draft_model, generate_model


def run_generate(shape: str, folder: str, dtype: str, blocks: int | None, seed: int) -> int:
    """Write a generated model and return the exit code 0.

    Parameters
    ----------
    shape : str
        A preset's name, or a folder with a ``config.json``.
    folder : str
        Where the model goes; must not exist.
    dtype : str
        'float32', 'bfloat16' or 'float16'.
    blocks : int or None
        How many blocks; None for all.
    seed : int
        What the weights follow from.

    Raises
    ------
    ModelError
        The shape is not known, or the folder cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    draft = draft_model(shape, dtype, blocks, seed)
    check_room(draft, target)
    text = draft.model.config.get_text_config()
    _say(
        f"{shape}: {text.num_hidden_layers} block(s), {draft.weights / 1e9:.2f} billion weights, "
        f"{draft.bytes / 1e9:.2f} GB as {dtype}"
    )
    started = time.monotonic()
    generate_model(draft, target)
    _say(f"{target}, {time.monotonic() - started:.1f} s")
    return 0


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
