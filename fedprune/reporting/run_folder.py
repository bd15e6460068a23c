"""What a run has left in its folder, read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprune.errors import FedpruneError

SIDECARS = (Path("model", "masks.safetensors"), Path("masks.safetensors"))
"""Where a run's masks are: beside its model, or in its folder where a sweep has dropped that."""


def read_results(folder: Path) -> Mapping[str, Any]:
    """Return the content of a run's `results.json`.

    Raises
    ------
    FedpruneError
        If the folder holds no completed run; the message says why a failed one failed.
    """
    try:
        found: Mapping[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FedpruneError(_why(folder)) from None
    except (OSError, ValueError) as error:
        raise FedpruneError(f"`results.json` in '{folder}' cannot be read: {error}") from None
    return found


def find_sidecar(folder: Path) -> Path | None:
    """Return the file of a run's masks, None where it is gone."""
    paths = [folder / name for name in SIDECARS]
    return next((path for path in paths if path.is_file()), None)


def _why(folder: Path) -> str:
    """Return why there are no results."""
    try:
        failure = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        what = "needs `results.json`" if folder.exists() else "is not there"
        return f"RUN must be the folder of a completed run, '{folder}' {what}."
    return f"The run in '{folder}' failed: {failure.get('reason')}"
