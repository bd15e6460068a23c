"""What ran: memory used, versions of libraries, and a digest of the sources."""

import hashlib
import importlib.metadata
import platform
import resource
import sys
from functools import cache
from pathlib import Path

_LIBRARIES = ("fedprune", "flwr", "torch", "transformers", "datasets", "tokenizers", "numpy")


def peak_rss_bytes() -> int:
    """Return the largest resident set size this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int:
    """Return the most memory this process has allocated on a CUDA device, 0 without one."""
    torch = sys.modules.get("torch")  # which takes seconds to import; without it there is nothing
    return int(torch.cuda.max_memory_allocated()) if torch and torch.cuda.is_available() else 0


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide about results."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES}


@cache
def _version(name: str) -> str:
    # Looked up once: it takes a while, and a simulation's process answers for many nodes.
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # From Flower's app bundle the package itself is not installed.
        return "from source"


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
