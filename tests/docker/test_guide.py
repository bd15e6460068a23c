"""The commands of docs/deployment.md, typed one after another on one machine that is all of them.

What is put in place of the reader's: names of projects, so that nothing else on this machine is
touched, the server's address, the site's folders, and jobs that are small.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compose import STEPS, Clock, docker, wheels
from tests.support.containers import DOCKER, no_engine
from tests.support.services import free_port

pytestmark = [pytest.mark.docker, pytest.mark.skipif(no_engine() != "", reason=no_engine())]

GUIDE = (DOCKER.parent / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"```bash (try|server|site)\n(.*?)```", GUIDE, re.DOTALL)
SMALL = "pruner.num_calibration_samples=2 pruner.seq_len=64 evaluation.max_windows=2"


class Reader:
    """Somebody who follows the guide in a copy of the checkout.

    Parameters
    ----------
    root : Path
        The copy; a folder `texts` beside it has the site's.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, secrets.token_hex(3)
        bridge = json.loads(docker("network", "inspect", "bridge"))
        self.address = bridge[0]["IPAM"]["Config"][0]["Gateway"]
        self.port = free_port()
        self.projects = {kind: f"guide-{self.run}-{kind}" for kind in ("try", "server", "site")}
        self.settings = {
            "TAG": self.run,
            "WHEELS_DIR": wheels() or root / "docker" / "empty",
            "FLEET_BIND": self.address,
            "FLEET_PORT": self.port,
            "EXECUTOR_CPUS": 1,
        }
        self.site = {
            "SERVER": f"{self.address}:{self.port}",
            "SITE": "site-a",
            "PARTITION_ID": 0,
            "DATA_DIR": root.parent / "texts",
        }

    def types(self, kind: str, block: str) -> str:
        """Type a block of the guide and return what it printed."""
        script = self._own_words(kind, block)
        environment = os.environ | {"COMPOSE_PROJECT_NAME": self.projects[kind]}
        if kind == "try":
            environment |= {key: str(value) for key, value in self.settings.items()}
            environment["CERTS_DIR"] = str(self.root / "certs-of-try")
        done = subprocess.run(
            ["bash", "-euxc", script],
            cwd=self.root if kind == "try" else self.root / "docker",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        assert done.returncode == 0, said
        return done.stdout + done.stderr

    def _own_words(self, kind: str, block: str) -> str:
        for ours, own in (
            ("federation.example.org", self.address),
            ("--project-name site-a", f"--project-name {self.projects['site']}"),
            ("fedprune_superlink", f"{self.projects['server']}_superlink"),
            ("fedprune-server:0.1.0-cpu", f"fedprune-server:{self.run}-cpu"),
            ("data=node strategy.min_clients=3", "data=node strategy.min_clients=1"),
            (" fedprune run federation", f" fedprune run {SMALL} federation"),
        ):
            block = block.replace(ours, own)
        block = block.replace("cp .env.example .env", self._filled(".env", self.settings))
        site = self.settings | self.site
        block = block.replace("cp .env.client.example site-a.env", self._filled("site-a.env", site))
        return re.sub(r"(docker compose\b[^\n]*? run) --rm", r"\1 --rm --no-TTY", block)

    def _filled(self, name: str, values: dict[str, object]) -> str:
        example = ".env.example" if name == ".env" else ".env.client.example"
        lines = "\n".join(f"{key}={value}" for key, value in values.items())
        return f"cp {example} {name}\ncat >> {name} <<'END'\n{lines}\nEND\n"

    def leaves(self) -> None:
        """Remove what the guide left running, whatever happened."""
        for project in self.projects.values():
            for kind in ("container", "volume", "network"):
                label = f"label=com.docker.compose.project={project}"
                all_of = ["--all"] if kind == "container" else []
                found = docker(kind, "ls", "--quiet", *all_of, "--filter", label).split()
                force = [] if kind == "network" else ["--force"]
                if found:
                    docker(kind, "rm", *force, *found)
        images = docker("image", "ls", "--quiet", "--filter", f"reference=fedprune-*:{self.run}*")
        if images.split():
            docker("image", "rm", "--force", *set(images.split()))


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("guide")
    skipped = shutil.ignore_patterns(".venv", ".git", "__pycache__", "certs", ".*_cache", "runs")
    shutil.copytree(DOCKER.parent, home / "main", ignore=skipped)
    (home / "texts").mkdir()
    for number in range(4):
        words = f"Note {number}: the patient in room {number} slept well and walked a little. "
        (home / "texts" / f"{number}.txt").write_text(words * 60)
    for path in (home, home / "texts"):
        path.chmod(0o755)
    found = Reader(home / "main")
    try:
        yield found
    finally:
        found.leaves()


def blocks(kind: str) -> list[str]:
    return [text for label, text in BLOCKS if label in kind.split()]


def test_the_first_try_on_one_machine(reader, request):
    clock = Clock()
    (block,) = blocks("try")
    with clock.step("the guide's first try, from certificates to results"):
        said = reader.types("try", block)
    assert "federated" in said and "3 clients" in said
    (results,) = (reader.root / "docker" / "runs").glob("*/results.json")
    found = json.loads(results.read_text())
    assert [client["name"] for client in found["clients"]] == [
        f"'site-{number + 1}' (partition {number})" for number in range(3)
    ]
    assert (results.parent / "model" / "config.json").is_file()
    request.config.stash.setdefault(STEPS, {}).update(clock.steps)


def test_a_server_and_a_site_from_nothing_to_a_backup(reader):
    said = [reader.types(kind, text) for kind, text in BLOCKS if kind != "try"]
    whole = "\n".join(said)
    for words in (
        "site-a: registered as node",
        "SuperNode ID",
        "1 client",
        "fedprune_blocks_done",
        "site-a: node",
        "renewed:",
    ):
        assert words in whole, words
    first = reader.root / "docker" / "first"
    assert (first / "report.html").is_file()
    (client,) = json.loads((first / "results.json").read_text())["clients"]
    assert client["name"] == "'site-a' (partition 0)"
    assert (reader.root / "docker" / "backup" / "superlink.tar.gz").stat().st_size > 1000
