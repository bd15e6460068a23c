"""What this machine has left, and how many clients or jobs share it at once."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprune.config import ModelConfig, RunConfig
from fedprune.errors import ConfigError
from fedprune.memory import free_memory

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


def has_gpu_driver() -> bool:
    """Whether there can be a CUDA device; costs nothing, unlike asking torch."""
    return shutil.which("nvidia-smi") is not None


def free_gpu_memory() -> tuple[int, ...]:
    """Return the free bytes of each CUDA device that torch can use."""
    # Here, because it takes seconds that a run without GPUs does not need to wait.
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


# Python with torch, transformers and Flower, texts, samples and the hidden states of a few.
_BASE_BYTES = 1_200_000_000
# A worker's copies of the block in hand: as it is stored, pruned, and parts of it in float32.
_BLOCKS = 3
_SHARE = 0.8  # of what is free; the rest is for the server and for what the estimate misses


@dataclass(frozen=True)
class Machine:
    """What there is to share."""

    cpus: int
    memory: int  # free bytes
    gpus: tuple[int, ...] = ()  # free bytes of each CUDA device

    @classmethod
    def here(cls, gpus: bool) -> "Machine":
        """Return this machine; looking for its GPUs takes seconds."""
        return cls(usable_cpus(), free_memory(), free_gpu_memory() if gpus else ())


@dataclass(frozen=True)
class Resources:
    """What is given to simulated clients."""

    workers: int  # processes, and so clients that work at once
    client_cpus: int
    client_gpus: float  # share of a GPU of each
    reason: str  # a sentence for the log


def choose_resources(config: RunConfig, machine: Machine) -> Resources:
    """Return how many workers share a machine, and what each of them gets.

    One worker a processor, unless there are fewer clients, or memory or GPUs hold fewer; workers
    that memory keeps from existing leave their processors to the others. What the configuration
    says is taken as it is.
    """
    _check(config, machine)
    federation, need = config.federation, worker_bytes(config.model)
    gpus = machine.gpus
    share = federation.client_gpus
    if share is None:
        share = _gpu_share(gpus, machine.cpus, need)
    cpus = federation.client_cpus
    workers = min(machine.cpus // (cpus or 1), federation.num_clients)
    if share:
        workers = min(workers, max(1, math.floor(1 / share) * len(gpus)))
    if cpus is None:
        fitting = workers if need is None else int(machine.memory * _SHARE) // need
        cpus = 1 if fitting >= workers else machine.cpus // max(1, fitting)
        workers = min(workers, machine.cpus // cpus)
    told = "an unknown amount" if need is None else f"about {need / 1e9:.1f} GB"
    reason = (
        f"{workers} simulated clients at a time, {cpus} CPU core(s) and {share:g} GPU each: "
        f"{machine.cpus} cores, {len(gpus)} GPU(s), {machine.memory / 1e9:.1f} GB free, {told} for "
        "each (federation.client_cpus, federation.client_gpus)"
    )
    return Resources(workers, cpus, float(share), reason)


def worker_bytes(model: ModelConfig) -> int | None:
    """Return about how much memory a worker takes; None where the model is not a folder here.

    A model in safetensors files is read block by block, another one is held whole.
    """
    size = model_bytes(model)
    if size is None:
        return None
    folder = Path(model.path).expanduser()
    if size and any(folder.glob("*.safetensors")):
        size = _BLOCKS * size // _blocks(folder)
    return _BASE_BYTES + size


def _blocks(folder: Path) -> int:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values = values.get("text_config") or values
        return max(1, int(values.get("num_hidden_layers") or values["n_layer"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 1


def _gpu_share(gpus: tuple[int, ...], cpus: int, need: int | None) -> float:
    """Return the share of a GPU that lets as many clients share it as it can hold."""
    if not gpus:
        return 0.0
    fitting = 1 if need is None else int(min(gpus) * _SHARE) // need
    sharing = max(1, min(fitting, math.ceil(cpus / len(gpus))))
    return math.floor(100 / sharing) / 100


def _check(config: RunConfig, machine: Machine) -> None:
    asked = config.federation
    if asked.client_cpus is not None and asked.client_cpus > machine.cpus:
        raise ConfigError(
            f"`federation.client_cpus` must be at most {machine.cpus}, the processors of this "
            f"machine, got {asked.client_cpus}."
        )
    if asked.client_gpus is not None and asked.client_gpus > len(machine.gpus):
        raise ConfigError(
            f"`federation.client_gpus` must be at most {len(machine.gpus)}, the CUDA devices that "
            f"torch finds on this machine, got {asked.client_gpus:g}. See `fedprune doctor`."
        )


_DEVICES = ("cuda", "auto")


def parallel_jobs(configs: Sequence[RunConfig], asked: int | None) -> int:
    """Return how many of some jobs to run at once.

    As many as there are processors, as fit into the free memory with the blocks that they hold,
    and as there are jobs. One at a time where jobs need a GPU, where they run on Flower's runtime,
    which uses the whole machine by itself, and where nobody knows how large the model is.
    `asked`: what the user wants; None leaves it to the machine.
    """
    others = [config for config in configs if not runs_inline(config)]
    if asked is not None and asked < 1:
        raise ConfigError(f"`--jobs` must be at least 1, got {asked}.")
    if others:
        if asked is not None and asked > 1:
            raise ConfigError(
                f"`--jobs` must be 1 for jobs on Flower's runtime, got {asked}. Only jobs with "
                "federation.backend=inline run side by side."
            )
        return 1
    wanted = asked if asked is not None else min(map(_fitting, configs), default=1)
    return max(1, min(wanted, len(configs)))


def runs_inline(config: RunConfig) -> bool:
    """Whether a job needs no runtime of Flower's."""
    return config.federation.backend == "inline" and not config.federation.connection


def _fitting(config: RunConfig) -> int:
    if config.pruner.device.startswith(_DEVICES) and has_gpu_driver():
        return 1
    need = worker_bytes(config.model)
    return 1 if need is None else min(usable_cpus(), free_memory() // need)
