"""Typed entry to Triton, which has no types: how kernels are declared and started.

Triton is optional and only imported where a tensor is on a GPU. It decides when it is imported
whether to compile or to interpret (``TRITON_INTERPRET=1``, on the CPU, for tests).
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import triton

P = ParamSpec("P")
R = TypeVar("R")


def gpu_jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function for the GPU on first use: a kernel, or what a kernel calls."""
    compiled: Callable[P, R] = triton.jit(function)
    return compiled


def launch(kernel: Callable[..., None], programs: int, *args: object, **options: object) -> None:
    """Start so many programs of a kernel; options are its constants, ``num_warps`` and the like.

    A product and the sum that it is added to are rounded one after the other, as on the CPU.
    """
    compiled: Any = kernel
    compiled[(programs,)](*args, enable_fp_fusion=False, **options)
