"""`fedprune supernode`: its arguments, the app it allows, and how its process ends."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedprune.cli import main
from fedprune.errors import ConfigError, FedpruneError
from fedprune.flower import supernode
from fedprune.flower.app import app_folder, staged
from fedprune.flower.superlink import runtime_environment
from fedprune.flower.supernode import FAILED, allowed_apps, own_app

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "ab" * 32


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[list[str], list[str], bool]:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(supernode, "run_supernode", lambda **given: taken.append(given))
    main(["supernode", *words])
    [given] = taken
    return given["passed_on"], given["app"], given["any_app"]


@pytest.mark.parametrize(
    ("words", "passed", "apps", "any_app"),
    [
        (["--superlink", "a:1", "--insecure"], ["--superlink", "a:1", "--insecure"], [], False),
        (
            ["--app", DIGEST, "--node-config", 'partition-id=0 data="/a b"', "--app", DIGEST[::-1]],
            ["--node-config", 'partition-id=0 data="/a b"'],
            [DIGEST, DIGEST[::-1]],
            False,
        ),
        (["--any-app", "--", "--port", "9", "--app", "x"], ["--port", "9", "--app", "x"], [], True),
        (["--appio-ssl-keyfile", "k", "--ap", "-V"], ["--appio-ssl-keyfile", "k", "--ap", "-V"])
        + ([], False),
    ],
)
def test_what_it_does_not_know_goes_to_flower_untouched(
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    passed: list[str],
    apps: list[str],
    any_app: bool,
) -> None:
    assert typed(monkeypatch, *words) == (passed, apps, any_app)


def test_help_says_where_the_other_arguments_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["supernode", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "ARGUMENTS OF flower-supernode" in shown and "exit code 70" in " ".join(shown.split())


def test_prints_the_app_of_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supernode", "--print-app"]) == 0
    assert capsys.readouterr().out == f"{own_app()}\n"


def test_the_same_sources_are_the_same_app_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder and name, other times, rights and neighbours, and no ignore rules."""
    with staged(app_folder()) as original:
        copy = tmp_path / "Another Name"
        shutil.copytree(original, copy, copy_function=shutil.copyfile)
    (copy / ".gitignore").unlink(missing_ok=True)
    for number, path in enumerate(sorted(copy.rglob("*"), reverse=True)):
        path.chmod(0o700)
        os.utime(path, (number, number))
    (copy / "fedprune" / "__pycache__").mkdir()
    (copy / "fedprune" / "__pycache__" / "x.py").write_text("x")
    (copy / "notes.py").write_text("mine")
    expected = own_app()
    monkeypatch.setattr(supernode, "app_folder", lambda: copy)
    assert own_app() == expected
    with (copy / "client_app" / "app.py").open("a") as file:
        file.write("#")
    assert own_app() != expected


def test_which_apps_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernode, "own_app", lambda: "c" * 64)
    assert allowed_apps([], False) == {"c" * 64}
    assert allowed_apps([DIGEST.upper()], False) == {"c" * 64, DIGEST}
    assert allowed_apps([], True) is None


@pytest.mark.parametrize(
    ("apps", "any_app", "words"),
    [
        (["abc"], False, r"`--app` must be.*64 hexadecimal digits, got 'abc'.*--print-app"),
        ([DIGEST + "0"], False, "`--app` must be"),
        ([DIGEST], True, "`--any-app` already allows"),
    ],
)
def test_wrong_digests(apps: Sequence[str], any_app: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        allowed_apps(apps, any_app)


def test_an_app_that_flower_cannot_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(supernode, "app_folder", lambda: tmp_path)
    with pytest.raises(FedpruneError, match="Flower cannot bundle the app"):
        own_app()


def ended(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own with a main loop that does as told."""
    lines = [
        "import sys, threading, time",
        "import flwr.supernode.cli.flower_supernode",
        "flower = sys.modules['flwr.supernode.cli.flower_supernode']",
        "from fedprune.cli import main",
        "def loop():",
        # Flower's own: a thread that keeps a process alive.
        "    threading.Thread(target=time.sleep, args=(60,)).start()",
        *(f"    {line}" for line in script.splitlines()),
        "flower.flower_supernode = loop",
        "main(['supernode', '--any-app', '--insecure', '--x', 'y z'])",
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=runtime_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_a_process_whose_main_loop_ends_is_over_and_never_loaded_torch(tmp_path: Path) -> None:
    done = ended(tmp_path, "print(sys.argv, 'torch' in sys.modules)")
    assert done.returncode == FAILED
    assert done.stdout == "['flower-supernode', '--insecure', '--x', 'y z'] False\n"
    assert "exit code 70" in done.stderr


def test_a_process_whose_main_loop_fails_is_over(tmp_path: Path) -> None:
    done = ended(tmp_path, "raise RuntimeError('gone')")
    assert done.returncode == FAILED and "gone" in done.stderr


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("3", 3), ("", 0), ("'no'", 1)])
def test_flower_s_own_exit_codes_stay(tmp_path: Path, code: str, expected: int) -> None:
    done = ended(tmp_path, f"sys.exit({code})")
    assert done.returncode == expected
    assert ("no\n" in done.stderr) == (expected == 1)
