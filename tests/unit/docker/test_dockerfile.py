"""The images' recipe: pinned, without secrets, buildable anywhere."""

import re
import subprocess
import sys

import pytest

from tests.support.containers import DOCKER
from tests.support.containers import command as found

TEXT = (DOCKER / "Dockerfile").read_text()
ROOT = DOCKER.parent


def test_builds_upon_one_image_that_the_builder_may_choose():
    assert "# syntax" not in TEXT  # would be fetched, whatever the registry
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE)
    names = {name for _, name in stages}
    assert {"server", "node", "gateway"} <= names
    assert {base for base, _ in stages} <= names | {"${BASE}"}
    assert set(re.findall(r"--from=(\S+)", TEXT)) <= names
    assert set(re.findall(r"from=(\w+),", TEXT)) == {"wheels"}


def test_ends_as_an_ordinary_user_who_is_always_the_same():
    stages = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
    users = {stage.split()[2]: re.findall(r"^USER (.+)$", stage, re.MULTILINE) for stage in stages}
    assert users["runtime"] == users["gateway"] == ["49999:49999"]
    assert not users["server"] and not users["node"]  # as in `runtime`, which they build upon


def test_everything_installed_has_a_version():
    installed = re.findall(r"pip install ([^\n\\;]+)", TEXT)
    assert len(installed) == 6
    for words in installed:
        pinned = all(
            "==" in word for word in words.split() if not word.startswith(("-", "/", '"$'))
        )
        assert pinned or "--constraint" in words or "--editable" in words, words
    packages = re.findall(r"--no-install-recommends ([^\n\\]+)", TEXT)
    assert all("=" in word for words in packages for word in words.split())


def test_requirements_are_the_projects_without_the_simulation_and_all_pinned():
    command = re.search(r'RUN python -c "(.+?)" > requirements.txt', TEXT, re.DOTALL)[1]
    command = command.replace("\\\n", "")
    words = [sys.executable, "-c", command]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = printed.stdout.splitlines()
    assert any(line.startswith("flwr>") for line in lines)
    assert not any("simulation" in line or line.startswith("ray") for line in lines)
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    known = {name.lower().replace("_", "-") for name in pinned}
    for line in lines:
        name = re.match(r"[A-Za-z0-9_.-]+", line)[0]
        assert name.lower().replace("_", "-") in known, line


def test_the_build_sees_no_keys_runs_or_environments():
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
    needed = {word for words in copied for word in words.split()}
    assert {word for word in allowed if not any(n.startswith(word) for n in needed)} == set()
    assert all((ROOT / word).exists() for word in allowed)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/docker/certs/", "/docker/.env", "/docker/*.env"} <= set(ignored)


@pytest.mark.skipif(found("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    done = subprocess.run(
        [found("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["certs.sh", "gateway/start.sh"])
@pytest.mark.skipif(found("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        [found("shellcheck"), DOCKER / script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
