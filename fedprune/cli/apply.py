"""`fedprune apply`: a pruned model of its base model and its masks alone."""

from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.models.export import SIDECAR, apply_masks


def run_apply(base: str, masks: str, output: str) -> int:
    """Write the model and return the exit code 0.

    Parameters
    ----------
    base : str
        The dense model: a folder, a Hub id, or 'demo'.
    masks : str
        The masks of an export, or the folder of a model or a run that has them.
    output : str
        A new folder.

    Raises
    ------
    ModelError
        If the masks are another model's, or the folder is taken.
    """
    found, target = Path(masks).expanduser(), Path(output).expanduser().absolute()
    for inside in (found / SIDECAR, found / "model" / SIDECAR):
        if inside.is_file():
            found = inside
    apply_masks(base, found, target)
    say(Console(), str(target))
    return 0
