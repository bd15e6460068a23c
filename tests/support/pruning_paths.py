"""The two ways to prune: compiled loops and tensor operations."""

from fedprune.pruning import selection

PATHS = ["compiled", "tensors"]


def take_path(monkeypatch, name):
    """Let pruners take this path for tensors on the CPU."""
    monkeypatch.setattr(selection, "runs_compiled", lambda _: name == "compiled")
