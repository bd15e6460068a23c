"""What a run has left in its folder, read back."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig, from_yaml
from fedprune.errors import ConfigError, FedpruneError

# An export's SIDECAR, whose module takes seconds to import; in the folder itself where a sweep has
# dropped the model.
_SIDECARS = (Path("model", "fedprune", "masks.safetensors"), Path("masks.safetensors"))


def read_results(folder: Path) -> Mapping[str, Any]:
    """Return the content of a run's `results.json`.

    Raises FedpruneError if the folder holds no completed run; the message says why a failed one
    failed.
    """
    try:
        found: Mapping[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if reason := failure_reason(folder):
            raise FedpruneError(f"The run in '{folder}' failed: {reason}") from None
        what = "needs `results.json`" if folder.exists() else "is not there"
        raise FedpruneError(
            f"RUN must be the folder of a completed run, '{folder}' {what}."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FedpruneError(f"`results.json` in '{folder}' cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise FedpruneError(f"`results.json` in '{folder}' is damaged: it holds no mapping.")
    return found


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Raise what goes wrong in the body of the `with` statement as damage of a run's results.

    Raises FedpruneError if `results.json` is JSON, but not what this version of fedprune writes.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FedpruneError(
            f"`results.json` in '{folder}' is damaged, or another version of fedprune wrote it "
            f"({type(error).__name__}: {error}). Use that version, or run it again."
        ) from error


def read_config(folder: Path) -> RunConfig:
    """Return a run's resolved configuration.

    Raises FedpruneError if it is missing, or not as this version of fedprune writes it.
    """
    path = folder / "config.yaml"
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedpruneError(f"'{path}' cannot be read: {error.strerror}.") from None
    except ConfigError as error:
        raise FedpruneError(
            f"'{path}' was written by another version of fedprune, or edited: {error} "
            "Use that version, or run it again."
        ) from None


def find_sidecar(folder: Path) -> Path | None:
    """Return the file of a run's masks, None where it is gone."""
    paths = [folder / name for name in _SIDECARS]
    return next((path for path in paths if path.is_file()), None)


def failure_reason(folder: Path) -> str:
    """Return why a run's ServerApp gave up, as it wrote beside what it made; "" if it did not."""
    try:
        return str(json.loads((folder / "failure.json").read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
