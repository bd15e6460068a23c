"""Skips where no image can be built, and says at the end how long every step took."""

import subprocess

import pytest

from tests.support.compose import STEPS

_PROBE = """
FROM python:3.11-slim-bookworm
RUN python3 -m pip download --quiet --no-deps --dest /tmp packaging==25.0
"""


@pytest.fixture(scope="session", autouse=True)
def _images_can_be_built() -> None:
    """Skip where an engine runs but has no base image, or containers reach no package index."""
    done = subprocess.run(
        ["docker", "build", "--quiet", "-"],
        input=_PROBE,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["docker build said nothing"]
        pytest.skip(f"no image can be built here: {lines[-1]}")


def pytest_terminal_summary(terminalreporter, config):
    for name, seconds in config.stash.get(STEPS, {}).items():
        terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
