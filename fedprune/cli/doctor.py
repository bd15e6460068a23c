"""`fedprune doctor`: is this machine ready, and what is to be mended if not.

Every check is a function that looks at one thing and returns what it found; none changes
anything.
"""

import contextlib
import importlib.metadata
import math
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from fedprune.cli.machine import usable_cpus
from fedprune.disk import home
from fedprune.errors import FedpruneError
from fedprune.flower.app import app_folder, project_table
from fedprune.flower.reach import LOOPBACK, proxy_of
from fedprune.flower.superlink import runtime_environment
from fedprune.flower.supervisor import MARK
from fedprune.memory import free_memory

Level = Literal["ok", "warn", "fail"]

_GIB = 2**30
_LEAST_PYTHON = (3, 11)
_LEAST_DISK_GIB = 1.0
_GOOD_DISK_GIB = 5.0
_WORKER_GIB = 0.8  # Python, torch and transformers of one worker, before its copy of the model.
_CLIENT_GPU_GIB = 8.0
_LEGAL_FOLDER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    level: Level  # ``fail`` when a run cannot work, ``warn`` when it may surprise
    found: str
    advice: str = ""  # what to do about it; empty when nothing


def run_doctor() -> int:
    """Print every check and return 1 if one of them fails, otherwise 0."""
    console = Console()
    failed = False
    for check in (found for look in CHECKS for found in look()):
        failed = failed or check.level == "fail"
        line = Text.assemble((f"{check.level:<5}", _STYLES[check.level]), f"{check.name}: ")
        console.print(line.append(check.found), soft_wrap=True)
        if check.advice:
            console.print(Text(f"     -> {check.advice}"), soft_wrap=True)
    return 1 if failed else 0


def check_python() -> Iterator[Check]:
    """Look at the Python version."""
    good = sys.version_info >= _LEAST_PYTHON
    least = ".".join(map(str, _LEAST_PYTHON))
    advice = "" if good else f"Use Python {least} or newer."
    yield Check("Python", "ok" if good else "fail", platform.python_version(), advice)


def check_app() -> Iterator[Check]:
    """Look for the Flower app, and at its folder's name, which Flower restricts."""
    try:
        folder = app_folder()
    except FedpruneError as error:
        yield Check("Flower app", "fail", "not found", str(error))
        return
    if _LEGAL_FOLDER.fullmatch(folder.name):
        yield Check("Flower app", "ok", str(folder))
    else:
        found = f"`flwr run` refuses the folder's name '{folder.name}'; `fedprune run` does not"
        advice = "Rename it: letters, digits and hyphens, a letter first, at most 32."
        yield Check("Flower app", "warn", found, advice)


def check_libraries() -> Iterator[Check]:
    """Compare the installed libraries with the ranges in ``pyproject.toml``."""
    try:
        project = project_table(app_folder())
    except FedpruneError:
        return  # Reported by the check of the app.
    good = []
    for text in project["project"]["dependencies"]:
        wanted = Requirement(text)
        version = _version(wanted.name)
        if version and wanted.specifier.contains(version, prereleases=True):
            good.append(f"{wanted.name} {version}")
        else:
            found = f"{wanted.name} {version or 'is not installed'}, needed {wanted.specifier}"
            yield Check("libraries", "fail", found, "Run `make install`.")
    if good:
        yield Check("libraries", "ok", ", ".join(good))


def check_torch() -> Iterator[Check]:
    """Load torch, and look at its threads and devices."""
    try:
        # Here, because it takes seconds and a broken installation is what the check looks for.
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "fail", f"cannot be loaded: {error}", "Run `make install`.")
        return
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        advice = "torch has CUDA but finds no device: look at `nvidia-smi`." if built else ""
        yield Check("CUDA", "ok", "none: models are pruned on the processor", advice)
        return
    free, total = torch.cuda.mem_get_info()
    sharing = max(1, min(usable_cpus(), int(free / _GIB / _CLIENT_GPU_GIB)))
    yield Check(
        "CUDA",
        "ok",
        f"{torch.cuda.get_device_name()}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free",
        f"In a simulation federation.client_gpus={math.floor(100 / sharing) / 100:g} "
        f"lets {sharing} clients share it.",
    )


def check_commands() -> Iterator[Check]:
    """Look for the commands that runs need."""
    path = runtime_environment()["PATH"]
    wanted = ("flwr", "flower-superlink", "flower-superexec", "flwr-simulation", "uv")
    missing = [name for name in wanted if shutil.which(name, path=path) is None]
    for name in missing:
        level: Level = "warn" if name == "uv" else "fail"
        advice = (
            "Only `flwr run` needs it, unless FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1."
            if level == "warn"
            else "Run `make install`."
        )
        yield Check("commands", level, f"`{name}` is not found", advice)
    if not missing:
        yield Check("commands", "ok", f"{', '.join(wanted)} are found")


def check_proxies() -> Iterator[Check]:
    """Look whether what Flower's processes say to each other here would go through a proxy."""
    proxy = proxy_of("127.0.0.1", tls=False) or proxy_of("127.0.0.1", tls=True)
    if proxy is None:
        yield Check("proxies", "ok", "none stands between processes of this machine")
        return
    yield Check(
        "proxies",
        "warn",
        f"{proxy[0]} is set, and NO_PROXY does not name this machine",
        "`fedprune` and what it starts go past it; for `flwr`, `flower-superlink` and "
        f"`flower-superexec` set NO_PROXY={','.join(LOOPBACK)}.",
    )


def check_disk() -> Iterator[Check]:
    """Look at the free space for the cache, for results and for Ray's files."""
    places = {"cache": home(), "this folder": Path.cwd(), "temporary": Path(tempfile.gettempdir())}
    for name, place in places.items():
        there = next(one for one in (place, *place.parents) if one.exists())
        free = shutil.disk_usage(there).free / _GIB
        level: Level = "ok" if free >= _GOOD_DISK_GIB else "warn"
        level = "fail" if free < _LEAST_DISK_GIB else level
        advice = "" if level == "ok" else "Free some: results need the model's size again."
        yield Check(f"disk, {name}", level, f"{free:.1f} GiB free in {place}", advice)


def check_cache() -> Iterator[Check]:
    """Write a file into the cache folder and take it away again."""
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "Set FEDPRUNE_HOME to a folder that can be written."
        yield Check("cache", "fail", f"{folder} cannot be written: {error.strerror}", advice)
    else:
        yield Check("cache", "ok", f"{folder} can be written")


def check_daemons() -> Iterator[Check]:
    """Look at the SuperLinks that `flwr run` has left running on this machine."""
    daemons = list(local_superlinks())
    if not daemons:
        yield Check("Flower daemon", "ok", "none runs")
    for pid, cwd, environment, command in daemons:
        problems = []
        allowed = environment.get("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION") != "1"
        if allowed and "--disable-runtime-dependency-installation" not in command:
            problems.append("it installs the app's dependencies anew for every run")
        if Path(cwd, "client_app").is_dir():
            problems.append("its simulations import `client_app` from its folder, not the app's")
        found = f"a local SuperLink runs, pid {pid}, in {cwd}"
        if problems:
            advice = f"Stop it: kill {pid}. Or use `fedprune run`, which does not use it."
            yield Check("Flower daemon", "warn", f"{found}: {', and '.join(problems)}", advice)
        else:
            yield Check("Flower daemon", "ok", found)


def local_superlinks() -> Iterator[tuple[int, str, dict[str, str], list[str]]]:
    """Yield pid, folder, environment and command line of this user's simulation SuperLinks.

    Those that belong to a running `fedprune run` are left out.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            command = process.cmdline()
            if "--simulation" not in command:
                continue
            if not any(Path(part).name == "flower-superlink" for part in command[:2]):
                continue
            environment = process.environ()
            if MARK not in environment:
                yield process.pid, process.cwd(), environment, command


def check_memory() -> Iterator[Check]:
    """Compare the free memory with the workers a simulation would start."""
    free = free_memory() / _GIB
    cpus = usable_cpus()
    fitting = max(1, int(free / _WORKER_GIB))
    found = f"{free:.1f} GiB free for {cpus} workers (about {_WORKER_GIB} GiB each and the model)"
    if free < _WORKER_GIB:
        yield Check("memory", "fail", found, "Free some memory: not even one worker fits.")
    elif fitting < cpus:
        advice = f"Set federation.client_cpus={math.ceil(cpus / fitting)} or more: fewer workers."
        yield Check("memory", "warn", found, advice)
    else:
        yield Check("memory", "ok", found)


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    check_python,
    check_app,
    check_libraries,
    check_torch,
    check_commands,
    check_proxies,
    check_disk,
    check_cache,
    check_daemons,
    check_memory,
)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
