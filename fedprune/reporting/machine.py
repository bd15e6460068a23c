"""What the process used and which versions decided about its results."""

import importlib.metadata
import platform
import resource
import sys
from functools import cache

import torch

_LIBRARIES = ("fedprune", "flwr", "torch", "transformers", "datasets", "tokenizers", "numpy")


def peak_rss_bytes() -> int:
    """Return the largest resident set size this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int:
    """Return the most memory this process has allocated on a CUDA device, 0 without one."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


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
