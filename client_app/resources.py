"""What a node can do: memory, speed, and what its operator allows."""

import time

import psutil
import torch

from fedprune.memory import free_memory

_SIZE = 768
_SECONDS = 0.05


def memory_bytes(device: str) -> int:
    """Return the memory of a device, 0 if nobody knows."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def free_bytes(device: str) -> int:
    """Return the memory of a device that is free now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def megaflops(device: str) -> int:
    """Return the measured speed of float32 matrix products, million operations a second."""
    if not device:
        return 0
    matrix = torch.ones(_SIZE, _SIZE, device=device)
    matrix @ matrix  # the first one also loads libraries
    _wait(device)
    started, products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < _SECONDS:
        matrix @ matrix
        _wait(device)
        products += 1
    return round(products * 2 * _SIZE**3 / seconds / 1e6)


def use_threads(threads: int | None) -> None:
    """Compute with so many of the processor's threads; None leaves it to the process."""
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
