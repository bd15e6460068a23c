"""The walk-through of docs/privacy.md: keys, roster, approvals, masks, ledger, signatures."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from client_app.ledger import entries
from tests.e2e.test_flower_runs import SMALL as QUICK
from tests.e2e.test_flower_runs import sidecar
from tests.support.federation import Federation

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "privacy.md").read_text()
# A crowded machine starts a process for each message for a minute.
SMALL = [one for one in QUICK if "timeout" not in one] + ["strategy.timeout=900"]
POLICY = """
format = "fedprune-policy"
version = 1
strategies = ["fedstats"]
payloads = ["sums"]
min-cohort = 3
mb-per-day = 100
"""


def steps() -> list[tuple[str, str]]:
    """Return the guide's commands, each with the comment above it."""
    (block,) = re.findall(r"```bash walk\n(.*?)```", GUIDE, re.DOTALL)
    found, where = [], ""
    for line in block.splitlines():
        if line.startswith("# "):
            where = line[2:]
        else:
            found.append((where, line))
    return found


def node_configs(folder: Path) -> list[str]:
    """Return the guide's configurations, their files below a folder."""
    rows = re.findall(r"^\| (?:north|south|east) \| `(.*)` \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 3
    whole = [
        re.sub(r'="((?:certs|roster|policy|ledger)[^"]*)"', rf'="{folder}/\1"', row) for row in rows
    ]
    return [f"partition-id={n} num-partitions=3 {row}" for n, row in enumerate(whole)]


class Typed:
    """Types the guide's lines in a folder; what a node's operator types, in that node's home."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, ""
        self.environment = os.environ | {"CERTS_DIR": str(folder / "certs")}
        self.wide = {"COLUMNS": "200"}

    def type(self, line: str, *more: str, **environment: str) -> int:
        words = [*shlex.split(line.replace("/srv/runs", str(self.folder))), *more]
        if words[0] == "fedprune":
            words = [sys.executable, "-m", "fedprune", *words[1:]]
        else:
            words[0] = str(ROOT / words[0])
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment | self.wide | environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        self.said = " ".join((done.stdout + done.stderr).split())
        return done.returncode


def test_the_guide_s_commands_one_after_another(tmp_path):
    folder = tmp_path / "sites"
    folder.mkdir()
    (folder / "policy.toml").write_text(POLICY)
    todo, typed = steps(), Typed(folder)
    while not todo[0][1].startswith("fedprune run"):
        assert typed.type(todo.pop(0)[1]) == 0, typed.said
    assert "Signed with the key" in typed.said and "3 clients or more" in typed.said
    (tmp_path / "federation").mkdir()
    with Federation(tmp_path / "federation", nodes=node_configs(folder)) as running:
        typed.environment = running.environment | {"PYTHONPATH": str(ROOT)}
        east = {"FEDPRUNE_HOME": str(running.nodes[2].home)}

        held = typed.type(todo.pop(0)[1], *SMALL)
        assert held == 1, typed.said + running.logs()
        assert "Its operator has not approved this job yet" in typed.said
        assert "'east' (partition 2)" in typed.said

        assert typed.type(todo.pop(0)[1], **east) == 0
        assert "under masks: the server sees sums over 3 clients or more" in typed.said
        (key,) = set(re.findall(r"\b([0-9a-f]{12}) asked", typed.said))
        line = todo.pop(0)[1]
        assert typed.type(line.replace("KEY", key), **east) == 0
        assert "approved" in typed.said

        done = typed.type(todo.pop(0)[1], *SMALL)
        assert done == 0, typed.said + running.logs()
    results = json.loads((folder / "first" / "results.json").read_text())
    assert results["strategy"]["secure"]["authenticated"] is True

    assert typed.type(todo.pop(0)[1]) == 0 and "sums masked" in typed.said
    assert typed.type(todo.pop(0)[1]) == 0 and "entries hold" in typed.said
    masked = [one for one in entries(folder / "ledger-east.jsonl") if one.masked]
    assert {one.request for one in masked} == {"train.prune"}
    assert typed.type(todo.pop(0)[1]) == 0, typed.said
    for site in ("north", "south", "east"):
        assert re.search(rf"'{site}' signed \d+ answers?, and this model\.", typed.said), typed.said
    assert not todo

    plain = ["run", "federation.backend=inline", "strategy=fedstats", "federation.num_clients=3"]
    # Under masks the first block's inputs are public text's.
    plain += ["evaluation.local_only=false", "privacy.first_input=public", "output_dir=plain"]
    again = typed.type(shlex.join(["fedprune", *plain]), *SMALL)
    assert again == 0, typed.said
    assert sidecar(folder / "plain") == sidecar(folder / "first")
