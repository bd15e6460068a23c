"""What the process used and which versions decided about its results."""

import importlib.metadata
import platform
import resource
import sys

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
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # From Flower's app bundle the package itself is not installed.
            found[name] = "from source"
    return found
