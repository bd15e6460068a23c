"""The app bundle holds what a node needs and nothing else."""

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 10_485_760
OWN = {"pyproject.toml", "README.md", "LICENSE"}
PACKAGES = ("client_app", "server_app", "strategies", "fedprune", "conf")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    # The checkout without what is large; of each folder that is left out, one file is there.
    checkout, skipped = tmp_path_factory.mktemp("checkout"), (".venv", "runs", "dist")
    ignored = shutil.ignore_patterns(*skipped, ".git", ".*_cache", ".hypothesis", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=ignored, dirs_exist_ok=True)
    for name in (*skipped, "fedprune/__pycache__"):
        (checkout / name).mkdir()
        (checkout / name / "left_out.py").touch()
    data = build_fab_from_disk(checkout)
    assert len(data) <= LIMIT
    return zipfile.ZipFile(io.BytesIO(data))


def test_holds_exactly_the_sources_configuration_and_demo_model(bundle):
    expected = set(OWN)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in {".py", ".yaml", ".json", ".md"} and "__pycache__" not in path.parts:
                expected.add(path.relative_to(ROOT).as_posix())
    found = {name for name in bundle.namelist() if not name.startswith(".info/")}
    assert found == expected
    assert any(name.endswith("models/demo/weights.json") for name in found)
    # Folders whose names a careless ignore rule would drop.
    assert {"fedprune/data/stdlib.py", "fedprune/models/embedded.py"} <= found


def test_bundle_content_is_that_of_the_checkout(bundle):
    name = "client_app/app.py"
    assert bundle.read(name) == (ROOT / name).read_bytes()
