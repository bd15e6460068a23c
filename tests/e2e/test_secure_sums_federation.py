"""Secure sums among processes with TLS, each site with a signing key and the roster of all."""

import json
from pathlib import Path

import pytest

from fedprune.models.export import SIDECAR
from tests.support.federation import Federation
from tests.support.jobs import opt_folder
from tests.support.signing import signed_roster, site_keys

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

SITES = ("north", "east", "south")
JOB = (
    "strategy=fedstats",
    "strategy.min_clients=3",
    "pruner.num_calibration_samples=2",
    "pruner.seq_len=48",
    "evaluation.local_only=false",
    "evaluation.centralized=false",
    "evaluation.max_windows=1",
    "privacy.first_input=own",
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    roster, nodes = folder / "roster.toml", []
    signed_roster(site_keys(SITES, folder), min_cohort=3).write(roster)
    for number, site in enumerate(SITES):
        nodes.append(
            f'partition-id={number} num-partitions=3 site="{site}" roster="{roster}" '
            f'signing-key="{folder / site}.key" min-cohort=3 ledger="{folder / site}.ledger"'
        )
    with Federation(tmp_path_factory.mktemp("federation"), nodes=nodes) as running:
        yield running


def run(federation: Federation, folder: Path, *overrides: str) -> tuple[int, str]:
    begun = federation.run(folder, *JOB, *overrides)
    begun.wait(1500)  # some twenty processes, one after another
    return begun.returncode, begun.out + begun.err


def test_sites_with_a_roster_make_the_masks_of_a_plain_run(federation, tmp_path):
    model = f"model={opt_folder(tmp_path / 'opt')}"
    secure = ("privacy.secure=true", "privacy.min_cohort=3")
    code, said = run(federation, tmp_path / "secure", model, *secure)
    assert code == 0, said + federation.logs()
    results = json.loads((tmp_path / "secure" / "results.json").read_text())
    assert results["strategy"]["secure"]["authenticated"]
    assert results["strategy"]["secure"]["clients"] == 3
    phases = [entry["phase"] for entry in results["ledger"]["entries"]]
    assert phases.count("keys") == phases.count("shares") == 3
    # A site that wants cohorts of three answers nobody in the open.
    code, said = run(federation, tmp_path / "plain", model)
    assert code != 0 and "`min-cohort` in the node's --node-config is 3" in said, said
    for node in federation.nodes:
        secrets = [path for path in node.home.glob("nodes/job-*/**/*") if path.is_file()]
        assert {path.name for path in secrets} <= {"sent", ".lock"}, secrets
    inline = federation.fedprune(
        *("run", *JOB, model, "federation.backend=inline"),
        *("federation.num_clients=3", f"output_dir={tmp_path / 'inline'}"),
    )
    assert inline.returncode == 0, inline.stdout + inline.stderr
    masks = [(tmp_path / name / "model" / SIDECAR).read_bytes() for name in ("secure", "inline")]
    assert masks[0] == masks[1]
