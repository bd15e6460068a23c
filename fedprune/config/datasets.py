"""Names in `evaluation.datasets` and `evaluation.tasks`: known ones, or paths of local files."""

import re
from collections.abc import Iterator
from pathlib import PurePath

from fedprune.config.overrides import group_options, is_path
from fedprune.config.suggest import did_you_mean, show

_INCOMPLETE = ("files", "hub", "node")  # presets that need a path


def dataset_names(text: str) -> list[str]:
    """Return the names in `evaluation.datasets` or `.tasks`, without repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(","))) if text else []


def is_task_file(name: str) -> bool:
    """Return whether a name in `evaluation.tasks` is a file that describes a task."""
    return name.endswith((".yaml", ".yml"))


def presets() -> list[str]:
    """Return the options of the group `data` that are data sets by themselves."""
    return [name for name in group_options("data") if name not in _INCOMPLETE]


def dataset_problems(text: str) -> Iterator[str]:
    """Yield a problem for each name that is neither a preset nor a path."""
    known = presets()
    for name in dataset_names(text):
        if name not in known and not (name and is_path(name)):
            yield (
                f"`evaluation.datasets` must list {', '.join(repr(preset) for preset in known)} or "
                "paths (starting with '/', '.' or '~'), separated by commas, got "
                f"{show(name)}.{did_you_mean(name, known)}"
            )


def path_label(path: str) -> str:
    """Return what the results call the texts at a path: its last names in a label's letters."""
    pure = PurePath(path)
    names = [pure.parent.name, pure.stem] if pure.suffix else [pure.name]
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", "-".join(name for name in names if name))
    return label.strip("_-")[:60] or "texts"
