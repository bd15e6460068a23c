"""Measuring how fast models are, as far as it must be done to see that it is done."""

import multiprocessing
from functools import partial
from types import ModuleType

import pytest

from fedprune.evaluation import speed, throughput


def measure_quickly(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Let what a module measures take turns once, in forks: new processes load torch first."""
    quick = partial(throughput.compare_throughput, rounds=1)
    patch.setattr(module, "compare_throughput", quick)
    patch.setattr(speed, "_LEAST_SECONDS", 0.0)
    patch.setattr(throughput, "_CONTEXT", multiprocessing.get_context("fork"))
