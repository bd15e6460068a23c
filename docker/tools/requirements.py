"""Print what the images install: the project's dependencies without the simulation's runtime."""

import sys
import tomllib
from pathlib import Path

_SIMULATION = "[simulation]"  # brings Ray, which no deployed process imports


def requirements(project: Path) -> list[str]:
    """Return the dependencies in a project's ``pyproject.toml``, without Flower's simulation."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))
    return [line.replace(_SIMULATION, "") for line in table["project"]["dependencies"]]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in requirements(Path(sys.argv[1]))))
