"""The least time that a client's work can take on a machine, from rates measured on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedprune.models.loading import LoadedModel

_ROUNDS = 5


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Parameters
    ----------
    moved : float
        Bytes of weights that reach where they are used: read from memory, or copied to the GPU.
    products : float
        Floating-point operations of matrix products in the model's type.
    """

    moved: float
    products: float

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, tokens: int) -> "Rates":
        """Measure a device with as many rows as a sample has tokens."""
        size = 4096
        weight = torch.ones(size, size, dtype=dtype)
        inputs = torch.ones(tokens, size, dtype=dtype, device=device)
        there = weight.to(device, copy=True)
        on_cpu = device.type == "cpu"
        # On the CPU a copy reads and writes.
        move = (lambda: there.copy_(weight)) if on_cpu else (lambda: weight.to(device))
        moved = weight.nbytes * (2 if on_cpu else 1) / best(move, device)
        products = 2 * tokens * size**2 / best(lambda: inputs @ there.T, device)
        return cls(moved, products)


def best(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of some rounds of a piece of work."""
    seconds = []
    for _ in range(_ROUNDS):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def block_floor(loaded: LoadedModel, samples: int, tokens: int, rates: Rates) -> float:
    """Return the least seconds of a client's block.

    Its weights move once, and every sample passes them twice: dense for the statistics, pruned for
    the next block's inputs.
    """
    tensors = loaded.block_tensors(0).values()
    size = sum(tensor.nbytes for tensor in tensors)
    linear = sum(rows * columns for rows, columns in loaded.layout.shapes()[0].values())
    return size / rates.moved + 2 * 2 * linear * samples * tokens / rates.products
