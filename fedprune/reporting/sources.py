"""A digest of the sources that are running, so that two machines can tell whether they agree."""

import hashlib
from functools import cache
from pathlib import Path

_PACKAGES = ("client_app", "conf", "fedprune", "server_app", "strategies")
_SUFFIXES = frozenset({".py", ".yaml", ".json"})


@cache
def source_digest() -> str:
    """Return the sha256 (hex) over names and contents of the app's sources and configuration."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in _SUFFIXES and "__pycache__" not in path.parts:
                content = path.read_bytes()
                name = path.relative_to(root).as_posix()
                digest.update(f"{name}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()
