"""What this machine has left, and how large a model is; torch is imported only to look at GPUs."""

import math
import os
import shutil
from pathlib import Path

from fedprune.config import ModelConfig

_WEIGHT_FILES = ("*.safetensors", "*.bin")


def usable_cpus() -> int:
    """Return the number of processors this process may use, a container's limit included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        limit = count or 1
    return max(1, min(count or 1, limit))


def cuda_devices() -> int:
    """Return the number of CUDA devices that torch can use."""
    # Here, because it takes seconds that a run without GPUs does not need to wait.
    import torch

    return torch.cuda.device_count()


def has_gpu_driver() -> bool:
    """Whether there can be a CUDA device; costs nothing, unlike asking torch."""
    return shutil.which("nvidia-smi") is not None


def free_gpu_memory() -> tuple[int, ...]:
    """Return the free bytes of each CUDA device that torch can use."""
    import torch

    return tuple(int(torch.cuda.mem_get_info(n)[0]) for n in range(torch.cuda.device_count()))


def model_bytes(config: ModelConfig) -> int | None:
    """Return the size of a model's weights on the disk, None where they are not a folder here."""
    if config.name != "hf":
        return 0  # the embedded one
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        return None
    return max(sum(path.stat().st_size for path in folder.glob(kind)) for kind in _WEIGHT_FILES)
