"""Prune large language models together with the organisations that hold the data.

`prune_locally`, `aggregate` and `evaluate` of :mod:`fedprune.api` can be had from here; torch is
imported when the first of them is asked for.
"""

import importlib

import fedprune.methods as _methods  # noqa: F401

__version__ = "0.1.0"

_FUNCTIONS = ("aggregate", "evaluate", "prune_locally")


def __getattr__(name: str) -> object:
    """Return a function of :mod:`fedprune.api`."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("fedprune.api"), name)
    raise AttributeError(f"module 'fedprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return what there is, the functions that are not imported yet included."""
    return sorted([*globals(), *_FUNCTIONS])
