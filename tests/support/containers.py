"""The compose files as they are merged, and the small programs inside the images."""

import copy
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import yaml

DOCKER = Path(__file__).resolve().parents[2] / "docker"
FILES = ("compose.yaml", "compose.server.yaml", "compose.client.yaml")
_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::?([-?])((?:[^{}]|\$\{[A-Z_]+\})*))?\}")
_DOCUMENTED = re.compile(r"#?([A-Z][A-Z0-9_]*)=(.*)")


@functools.cache
def parsed(file: str) -> dict:
    """Return a compose file as it is written."""
    return yaml.safe_load((DOCKER / file).read_text())


@functools.cache
def services(file: str) -> dict[str, dict]:
    """Return a compose file's services as they are after `extends`; variables stay as written."""
    found = parsed(file)["services"]
    return {name: _extended(service) for name, service in found.items()}


def _extended(service: dict) -> dict:
    if "extends" not in service:
        return service
    base = service["extends"]
    whole = parsed(base["file"])["services"][base["service"]]
    return _merged(_extended(whole), {k: v for k, v in service.items() if k != "extends"})


def _merged(base: dict, over: dict) -> dict:
    result = copy.deepcopy(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list) and key != "command":
            result[key] = before + value
        else:
            result[key] = value
    return result


def variables(*files: str) -> dict[str, str | None]:
    """Return the variables of files with their defaults; None for one that must be given."""
    found: dict[str, str | None] = {}
    for file in files:
        for line in (DOCKER / file).read_text().splitlines():
            for name, kind, default in _VARIABLE.findall(line.partition(" #")[0]):
                value = default if kind == "-" else None
                assert found.get(name, value) in (value, None) or value is None, name
                found[name] = found.get(name) if value is None else value
    return found


def documented(example: str) -> dict[str, str | None]:
    """Return the variables of an example with their defaults; None for one that is not optional."""
    found: dict[str, str | None] = {}
    for line in (DOCKER / example).read_text().splitlines():
        if match := _DOCUMENTED.fullmatch(line):
            found[match[1]] = match[2] if line.startswith("#") else None
    return found


def tool(name: str) -> ModuleType:
    """Import one of the programs in `docker/tools`, which find each other as in the image."""
    folder = str(DOCKER / "tools")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


@functools.cache
def no_compose() -> str:
    """Return why `docker compose` cannot check files here; "" if it can."""
    if shutil.which("docker") is None:
        return "there is no `docker` command"
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "`docker` has no compose plugin"


@functools.cache
def no_engine() -> str:
    """Return why no containers can be started here; "" if they can."""
    if reason := no_compose():
        return reason
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else "no Docker engine answers"


def command(name: str) -> str | None:
    """Return the path of a program of this environment or of the machine."""
    return shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
