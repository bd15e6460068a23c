"""Real containers: projects made of the compose files, as an operator would start them."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import DOCKER

STEPS = pytest.StashKey[dict[str, float]]()
"""Where a session keeps how long its steps took."""


def docker(*words: str, timeout: float = 120.0) -> str:
    """Run a docker command that must succeed and return what it wrote."""
    return finished(["docker", *words], timeout)


def finished(command: list[str], timeout: float) -> str:
    """Run a command to its end; what it said is in the error if it fails."""
    done = subprocess.run(
        command, cwd=DOCKER, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, (
        f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def wheels() -> str:
    """Return the folder with torch's wheel that pip is told to look into; "" if there is none."""
    told = subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    lines = [
        line.partition("=")[2].strip("'\"") for line in told.splitlines() if "find-links" in line
    ]
    for folder in " ".join([os.environ.get("PIP_FIND_LINKS", ""), *lines]).split():
        if list(Path(folder.removeprefix("file://")).glob("torch-*cpu*.whl")):
            return folder.removeprefix("file://")
    return ""


class Project:
    """One `docker compose` project.

    `name`, `file`: its name, and the compose file.
    """

    def __init__(self, name: str, file: str, folder: Path, **settings: object) -> None:
        self.name = name
        environment = folder / f"{name}.env"
        environment.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        words = ["--project-name", name, "--env-file", str(environment), "--file", file]
        self.words = ["docker", "compose", "--progress", "plain", *words]

    def __call__(self, *words: str, timeout: float = 600.0) -> str:
        """Run a compose command that must succeed."""
        return finished([*self.words, *words], timeout)

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self.name}-{service}-1"

    def execute(self, service: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's container."""
        command = ["docker", "exec", self.container(service), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def inspect(self, service: str) -> dict:
        """Return what the engine knows of a service's container."""
        return json.loads(docker("inspect", self.container(service)))[0]

    def health(self, service: str) -> str:
        """Return `starting`, `healthy` or `unhealthy`; `` while it does not run."""
        state = self.inspect(service)["State"]
        return state["Health"]["Status"] if state["Running"] else ""

    def down(self) -> None:
        """Remove containers, networks, volumes and images; all are tried, whatever fails."""
        words = ["down", "--volumes", "--remove-orphans", "--timeout", "3", "--rmi", "all"]
        command = [*self.words, "--profile", "tools", *words]
        subprocess.run(command, cwd=DOCKER, capture_output=True, timeout=180, check=False)


class Clock:
    """Seconds of every step."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        started = time.monotonic()
        yield
        self.steps[name] = time.monotonic() - started


def await_line(path: Path, words: str, seconds: float, process: subprocess.Popen) -> None:
    """Wait until a file that a process writes holds some words.

    Raises AssertionError: it took too long, or the process ended.
    """
    deadline = time.monotonic() + seconds
    while words not in (text := path.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, f"no '{words}' in {seconds:.0f} s:\n{text}"
        time.sleep(0.2)
