"""Each check of `fedprune doctor` tells a good machine from a bad one."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedprune.cli import doctor
from fedprune.cli.doctor import Check, local_superlinks, run_doctor
from fedprune.errors import FedpruneError
from fedprune.flower.supervisor import MARK
from tests.support.flower import executable

GIB = 2**30


def levels(checks: Iterator[Check]) -> list[str]:
    return [check.level for check in checks]


def only(checks: Iterator[Check]) -> Check:
    (check,) = checks
    return check


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok")])
def test_python(monkeypatch, version, level):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    check = only(doctor.check_python())
    assert check.level == level
    assert ("3.11" in check.advice) == (level == "fail")


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("fedprune", "ok"),
        ("fed-prune2", "ok"),
        ("fed_prune", "warn"),
        ("2fed", "warn"),
        ("f" * 33, "warn"),
    ],
)
def test_app(monkeypatch, name, level):
    monkeypatch.setattr(doctor, "app_folder", lambda: Path("/x") / name)
    assert only(doctor.check_app()).level == level


def test_a_missing_app(monkeypatch):
    def missing() -> Path:
        raise FedpruneError("Install it.")

    monkeypatch.setattr(doctor, "app_folder", missing)
    check = only(doctor.check_app())
    assert (check.level, check.advice) == ("fail", "Install it.")
    assert levels(doctor.check_libraries()) == []


def test_libraries_are_compared_with_the_project_s_ranges(tmp_path, monkeypatch):
    wanted = 'dependencies = ["good>=1,<2", "old[x]>=2", "absent>=1"]'
    (tmp_path / "pyproject.toml").write_text(f"[project]\n{wanted}\n")
    monkeypatch.setattr(doctor, "app_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "_version", {"good": "1.5", "old": "1.9"}.get)
    found = [(check.level, check.found) for check in doctor.check_libraries()]
    assert found == [
        ("fail", "old 1.9, needed >=2"),
        ("fail", "absent is not installed, needed >=1"),
        ("ok", "good 1.5"),
    ]


def test_torch_without_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded, cuda = doctor.check_torch()
    assert torch.__version__ in loaded.found and "threads" in loaded.found
    assert cuda.level == "ok" and "none" in cuda.found


@pytest.mark.parametrize(
    ("free_gib", "cpus", "share", "clients"),
    [(70, 16, "0.12", "8"), (70, 2, "0.5", "2"), (3, 8, "1", "1")],
)
def test_torch_with_a_device_suggests_a_share(monkeypatch, free_gib, cpus, share, clients):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gib * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Big GPU")
    monkeypatch.setattr(doctor, "usable_cpus", lambda: cpus)
    _, cuda = doctor.check_torch()
    assert "Big GPU" in cuda.found
    assert f"federation.client_gpus={share} lets {clients} clients" in cuda.advice


def test_a_broken_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert only(doctor.check_torch()).level == "fail"


@pytest.mark.parametrize(
    ("missing", "expected"), [(set(), ["ok"]), ({"uv"}, ["warn"]), ({"flwr"}, ["fail"])]
)
def test_commands(monkeypatch, missing, expected):
    monkeypatch.setattr(
        shutil, "which", lambda name, path: None if name in missing else f"/bin/{name}"
    )
    assert levels(doctor.check_commands()) == expected


def test_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert levels(doctor.check_proxies()) == ["ok"]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    (check,) = doctor.check_proxies()
    assert check.level == "warn" and "HTTPS_PROXY is set" in check.found
    assert "NO_PROXY=127.0.0.1,localhost,::1" in check.advice
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    assert levels(doctor.check_proxies()) == ["ok"]


@pytest.mark.parametrize(("gib", "level"), [(0.5, "fail"), (2, "warn"), (50, "ok")])
def test_disk(monkeypatch, gib, level):
    usage = SimpleNamespace(free=gib * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert levels(doctor.check_disk()) == [level] * 3


def test_disk_of_a_cache_that_does_not_exist_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "not" / "yet"))
    assert len(levels(doctor.check_disk())) == 3


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "new"))
    assert only(doctor.check_cache()).level == "ok"
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "file" / "below"))
    check = only(doctor.check_cache())
    assert check.level == "fail" and "FEDPRUNE_HOME" in check.advice


@pytest.mark.parametrize(
    ("package", "environment", "command", "words"),
    [
        (False, {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}, [], []),
        (False, {}, ["--disable-runtime-dependency-installation"], []),
        (False, {}, [], ["for every run"]),
        (True, {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}, [], ["`client_app`"]),
        (True, {}, [], ["for every run", "`client_app`"]),
    ],
)
def test_daemons(tmp_path, monkeypatch, package, environment, command, words):
    if package:
        (tmp_path / "client_app").mkdir()
    found = (77, str(tmp_path), environment, ["flower-superlink", "--simulation", *command])
    monkeypatch.setattr(doctor, "local_superlinks", lambda: iter([found]))
    check = only(doctor.check_daemons())
    assert check.level == ("warn" if words else "ok")
    assert all(word in check.found for word in words)
    assert "pid 77" in check.found
    assert ("kill 77" in check.advice) == bool(words)


def test_no_daemon(monkeypatch):
    monkeypatch.setattr(doctor, "local_superlinks", lambda: iter([]))
    assert only(doctor.check_daemons()).level == "ok"


@pytest.mark.parametrize("ours", [False, True])
def test_a_running_daemon_is_found_unless_it_is_a_run_s_own(tmp_path, ours):
    script = executable(tmp_path / "flower-superlink", "#!{python}\nimport time\ntime.sleep(600)\n")
    environment = {"SOME": "thing"} | ({MARK: "/tmp/x"} if ours else {})
    command = [sys.executable, str(script), "--simulation"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        try:
            deadline = time.monotonic() + 10
            found: dict[int, tuple[str, dict[str, str]]] = {}
            # Between fork and exec the child still has this process's command line.
            while time.monotonic() < deadline and process.pid not in found and not ours:
                found = {pid: (cwd, env) for pid, cwd, env, _ in local_superlinks()}
            assert (process.pid in found) != ours
            if not ours:
                assert found[process.pid] == (str(tmp_path), environment)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("gib", "cpus", "level", "advice"),
    [
        (16.0, 8, "ok", ""),
        (3.3, 16, "warn", "federation.client_cpus=4"),
        (0.5, 2, "fail", "not even one"),
    ],
)
def test_memory(monkeypatch, gib, cpus, level, advice):
    monkeypatch.setattr(doctor, "free_memory", lambda: int(gib * GIB))
    monkeypatch.setattr(doctor, "usable_cpus", lambda: cpus)
    check = only(doctor.check_memory())
    assert check.level == level
    assert advice in check.advice


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_and_the_advice(monkeypatch, capsys, level, code):
    checks = [Check("a", level, "found [x]", "Do this."), Check("b", "ok", "fine")]
    monkeypatch.setattr(doctor, "CHECKS", [lambda: iter(checks)])
    assert run_doctor() == code
    assert capsys.readouterr().out.splitlines() == [
        f"{level:<5}a: found [x]",
        "     -> Do this.",
        "ok   b: fine",
    ]
