"""A wheel in an environment of its own, outside any checkout, does what the checkout does."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from fedprune.flower.supernode import own_app

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
pytest.importorskip("hatchling")

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("flwr", "flower-superlink", "flower-superexec", "flwr-simulation", "ray")
TINY = [
    *("pruner.num_calibration_samples=2", "pruner.seq_len=32", "evaluation.max_windows=2"),
    *("evaluation.local_only=false", "evaluation.centralized=false", "output_dir=out"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the `bin` of an environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    home = folder / "venv"
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    # By name and not by this environment's own links, one of which leads to the checkout.
    seen = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(seen))
    arguments = ["install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run([home / "bin" / "python", "-m", "pip", *arguments], check=True)
    for name in COMMANDS:
        script = Path(shutil.which(name, path=_path(Path(sys.executable).parent)) or "")
        lines = script.read_text().splitlines()
        (home / "bin" / name).write_text("\n".join([f"#!{home / 'bin' / 'python'}", *lines[1:]]))
        (home / "bin" / name).chmod(0o755)
    return home / "bin"


def _path(first: Path) -> str:
    return os.pathsep.join([str(first), os.environ["PATH"]])


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [installed / command[0], *command[1:]],
        cwd=folder,
        env=environment | {"PATH": _path(installed)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_the_bundle_is_that_of_the_checkout(installed, tmp_path):
    done = run(installed, tmp_path, "fedprune", "supernode", "--print-app")
    assert done.stdout.strip() == own_app(), done.stderr


def test_the_doctor_finds_nothing_to_mend(installed, tmp_path):
    done = run(installed, tmp_path, "fedprune", "doctor")
    assert done.returncode == 0 and "fail" not in done.stdout, done.stdout
    assert str(installed.parent) in done.stdout  # where its app is


def test_a_run_on_flowers_runtime(installed, tmp_path):
    done = run(installed, tmp_path, "fedprune", "run", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("module", ["fedprune", "fedprune.cli"])
def test_packages_of_our_names_in_the_users_folder_are_not_ours(installed, tmp_path, module):
    for name in ("client_app", "server_app", "strategies", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('another one')\n")
    word = ["run"] if module == "fedprune" else []
    tiny = [text if text != "output_dir=out" or word else "hydra.run.dir=out" for text in TINY]
    inline = [*word, *tiny, "federation.backend=inline"]
    done = run(installed, tmp_path, "python", "-m", module, *inline)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "results.json").is_file()
