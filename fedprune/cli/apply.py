"""`fedprune apply`: a model of its base model and what says what remains of it."""

from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.models.export import SIDECAR, apply_masks
from fedprune.models.kept import KEPT, is_kept
from fedprune.models.reshape import apply_kept


def run_apply(base: str, masks: str, output: str) -> int:
    """Write the model and return the exit code 0.

    `masks`: the masks of an export, what it says of the units that remain where it has fewer, or
    the folder of a model or a run that has one of these.
    """
    found, target = Path(masks).expanduser(), Path(output).expanduser().absolute()
    for folder in (found, found / "model"):
        for inside in (folder / SIDECAR, folder / KEPT):
            if inside.is_file():
                found = inside
    make = apply_kept if is_kept(found) else apply_masks
    make(base, found, target)
    say(Console(), str(target))
    return 0
