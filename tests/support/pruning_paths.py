"""The ways to prune: compiled loops, GPU kernels, tensor operations.

GPU kernels run in Triton's interpreter where there is no GPU (see ``tests/conftest.py``).
"""

from importlib.util import find_spec

import pytest
import torch

from fedprune.pruning import select

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton's kernels run

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install 'fedprune[triton]'."
)
needs_interpreter = pytest.mark.skipif(
    DEVICE == "cuda", reason="Triton compiles for the GPU here; tests of its kernels run there."
)
PATHS = ["compiled", "tensors", pytest.param("triton", marks=[needs_triton, needs_interpreter])]


def take_path(monkeypatch, name):
    """Let pruners take this path for tensors on the CPU."""
    monkeypatch.setattr(select, "runs_compiled", lambda _: name == "compiled")
    monkeypatch.setattr(select, "runs_triton", lambda _: name == "triton")
