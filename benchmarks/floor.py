"""What no kernel can be faster than: reading its bytes once, at a rate measured beside it."""

import numpy as np
from torch import Tensor


def read_pass(values: Tensor) -> int:
    """Read a contiguous tensor once, as fast as one core can, and return its highest word."""
    return int(values.detach().view(-1).numpy().view(np.int32).max())


def floor_of(seconds: float, read: float, bytes_moved: float, bytes_read: int) -> dict[str, float]:
    """Return the floor of a step in milliseconds, and how many times as long the step takes.

    Parameters
    ----------
    seconds : float
        Time of the step.
    read : float
        Time of a read pass.
    bytes_moved : float
        What the step has to read and write.
    bytes_read : int
        What the read pass read.
    """
    floor = read * bytes_moved / bytes_read
    return {"floor, ms": floor * 1e3, "times the floor": seconds / floor}
