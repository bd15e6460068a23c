"""A sweep against a deployed federation: its jobs go through one SuperLink, one after another."""

import csv
import json

import pytest

from tests.e2e.test_flower_runs import SMALL
from tests.support.federation import Federation

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

QUICK = ["evaluation.max_windows=1", "evaluation.local_only=false", "evaluation.centralized=false"]


def test_jobs_go_to_the_federation_and_results_come_back(tmp_path):
    command = [
        "sweep",
        "sparsity=0.3,0.5",
        *SMALL,
        *QUICK,
        "federation.connection=site",
        f"output_dir={tmp_path / 'out'}",
    ]
    with Federation(tmp_path, nodes=2, tls=False) as federation:
        refused = federation.fedprune(*command, "--jobs", "2")
        assert refused.returncode == 2 and "`--jobs` must be 1" in refused.stderr
        done = federation.fedprune(*command, seconds=600)
        assert done.returncode == 0, done.stdout + done.stderr
    table = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [row["sparsity"] for row in table] == ["0.3", "0.5"]
    for row in table:
        folder = tmp_path / "out" / f"sparsity={row['sparsity']}"
        clients = json.loads((folder / "results.json").read_text())["clients"]
        assert [client["name"] for client in clients] == [
            "'site-0' (partition 0)",
            "'site-1' (partition 1)",
        ]
        assert (folder / "report.html").is_file()
