"""Where fedprune keeps what can be made again: materialised models and nodes' scratch files."""

import os
from pathlib import Path


def home() -> Path:
    """Return the cache folder: ``$FEDPRUNE_HOME`` or ``~/.cache/fedprune``."""
    chosen = os.environ.get("FEDPRUNE_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fedprune"
