"""The Flower app that is sent to the SuperLink: where it lies, and only what belongs to it.

`flwr run` looks at every file below the app's folder, takes the folder's name for the app's, and
tells nobody the digest of what it sends. We copy what belongs to the app into a folder of its own
and build the same bundle to know its digest. Without it: six seconds a run, no run from a checkout
with another name, and no site could say which app it allows.
"""

import contextlib
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fedprune
from fedprune.errors import FedpruneError

_PROJECT = "pyproject.toml"
_IGNORE = ".gitignore"
_SHIPPED = Path(
    "fedprune", "flower", "bundle"
)  # in a wheel: what lies beside the packages elsewhere


def app_folder() -> Path:
    """Return the folder of the Flower app's packages: a checkout, or where a wheel has put them.

    Raises FedpruneError if fedprune was installed without it.
    """
    folder = Path(fedprune.__file__).resolve().parents[1]
    with contextlib.suppress(OSError, KeyError):
        if project_table(folder)["tool"]["flwr"]["app"]:
            return folder
    raise FedpruneError(
        f"`fedprune run` sends the Flower app to the SuperLink and found no `pyproject.toml` with "
        f"[tool.flwr.app] in '{folder}'. Install fedprune anew, from its wheel or its checkout."
    )


def project_table(folder: Path) -> dict[str, Any]:
    """Return the content of the ``pyproject.toml`` of an app's folder.

    Raises OSError if it cannot be read.
    """
    return tomllib.loads((_beside(folder) / _PROJECT).read_text(encoding="utf-8"))


def _beside(folder: Path) -> Path:
    """Return where the files that belong to an app beside its packages lie."""
    shipped = folder / _SHIPPED
    return shipped if shipped.is_dir() else folder


@contextlib.contextmanager
def staged(app: Path) -> Iterator[Path]:
    """Copy what belongs to an app into a folder of its own for as long as it is submitted.

    `flwr run` looks at every file below the app's folder before it leaves most of them out, and a
    checkout holds a virtual environment with tens of thousands: six seconds a run. The copy bears
    the project's name, which Flower accepts whatever the checkout is called.

    `app`: folder whose ``pyproject.toml`` lists the app's files in `fab-include`. Yields a folder
    from which Flower builds the same bundle.
    """
    project = project_table(app)
    patterns = project["tool"]["flwr"]["app"]["fab-include"]
    with tempfile.TemporaryDirectory(prefix="fedprune-app-") as folder:
        copy = Path(folder, project["project"]["name"])
        for pattern in (_PROJECT, _IGNORE, *patterns):
            place = app if "/" in pattern else _beside(app)
            for source in place.glob(pattern):
                if source.is_file() and not source.is_symlink():
                    target = copy / source.relative_to(place)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
        yield copy
