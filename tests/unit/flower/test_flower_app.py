"""The app is found from anywhere, and submitted without what does not belong to it."""

from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

import fedprune
from fedprune.errors import FedpruneError
from fedprune.flower.app import app_folder, staged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_PROJECT = """
[project]
name = "small-app"
version = "0.1.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tests"
fab-include = ["client_app/**/*.py", "server_app/**/*.py", "conf/**/*.yaml", "README.md"]

[tool.flwr.app.components]
serverapp = "server_app.app:app"
clientapp = "client_app.app:app"
"""
_BELONGING = [
    ".gitignore",
    "README.md",
    "client_app/app.py",
    "client_app/deep/er/x.py",
    "conf/a/b.yaml",
    "pyproject.toml",
    "server_app/app.py",
    "server_app/secret.py",
]
_OTHERS = ["conf/notes.txt", "docs/x.md", ".venv/lib/client_app/y.py", "client_app/data.csv"]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "small-app"
    for name in _BELONGING + _OTHERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / "pyproject.toml").write_text(_PROJECT)
    (folder / ".gitignore").write_text("/server_app/secret.py\n")
    (folder / "client_app" / "link.py").symlink_to(folder / "docs" / "x.md")
    return folder


def test_the_app_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (app_folder() / "client_app").is_dir()


@pytest.mark.parametrize("project", [None, "[project]\nname = 'other'\n"])
def test_an_installation_without_the_app_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str | None
) -> None:
    monkeypatch.setattr(fedprune, "__file__", str(tmp_path / "fedprune" / "__init__.py"))
    if project:
        (tmp_path / "pyproject.toml").write_text(project)
    with pytest.raises(FedpruneError, match="checkout"):
        app_folder()


def test_only_what_belongs_to_the_app_is_staged(app: Path) -> None:
    with staged(app) as copy:
        found = sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file())
        assert found == _BELONGING
    assert not copy.parent.exists()


def test_flower_builds_the_same_bundle(app: Path) -> None:
    with staged(app) as copy:
        assert build_fab_from_disk(copy) == build_fab_from_disk(app)


def test_the_copy_has_a_name_that_flower_accepts(app: Path) -> None:
    renamed = app.rename(app.with_name("small_app, of mine"))
    with staged(renamed) as copy:
        assert copy.name == "small-app"
