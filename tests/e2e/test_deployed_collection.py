"""Statistics collected from a federation of real processes, and models made of them without it."""

import json

import numpy as np
import pytest

from fedprune.cli import main
from fedprune.methods.statistics_folder import StatisticsFolder
from tests.e2e.test_flower_runs import sidecar
from tests.support.federation import CONNECTION, Federation

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

SMALL = (
    "pruner.num_calibration_samples=2",
    "pruner.seq_len=32",
    "evaluation.max_windows=2",
    "federation.num_clients=2",
    "strategy.min_clients=2",
)
KINDS = "strategy.statistics='columns,moments'"
QUIET = ("evaluation.local_only=false", "evaluation.centralized=false")


def test_what_sites_collect_is_solved_for_the_masks_of_one_process(tmp_path):
    out = tmp_path / "collected"
    folder = tmp_path / "federation"
    folder.mkdir()
    sites = [
        f'partition-id={number} num-partitions=2 site="site-{number}" may-send="moments"'
        for number in range(2)
    ]
    with Federation(folder, nodes=sites, tls=False) as federation:
        words = (*SMALL, KINDS, f"federation.connection={CONNECTION}")
        few = "schedule.blocks_per_message=4"  # two orders a node, each a process of its own
        done = federation.fedprune("collect", *words, few, f"output_dir={out}", seconds=900)
        assert done.returncode == 0, done.stdout + done.stderr + federation.logs()
        for node in federation.nodes:
            assert not list(node.home.glob("nodes/run-*/partition-*"))  # nothing stays there
    assert not (out / "model").exists()

    # The federation has ended: nobody is there to be asked.
    solve = ("solve", str(out), "pruner=wanda", "sparsity=0.5", "evaluation.max_windows=2")
    assert main([*solve, f"output_dir={tmp_path / 'solved'}"]) == 0
    one_shot = ("strategy=fedstats", "pruner=wanda", "sparsity=0.5", "schedule.prefix=dense")
    inline = ("federation.backend=inline", *QUIET)
    run = ["run", *SMALL, *one_shot, *inline, f"output_dir={tmp_path / 'run'}"]
    assert main(run) == 0
    assert sidecar(tmp_path / "solved") == sidecar(tmp_path / "run")
    assert main(["verify", str(tmp_path / "solved"), str(out)]) == 0

    local = ["collect", *SMALL, KINDS, "federation.backend=inline"]
    assert main([*local, f"output_dir={tmp_path / 'local'}"]) == 0
    deployed, here = StatisticsFolder.open(out), StatisticsFolder.open(tmp_path / "local")
    told = deployed.manifest.participants
    assert [(one.site, one.partition_id) for one in told] == [("site-0", 0), ("site-1", 1)]
    assert [one.tokens for one in told] == [one.tokens for one in here.manifest.participants]
    for block in range(deployed.num_blocks):
        found, expected = deployed.arrays(block), here.arrays(block)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            if name.startswith("columns"):  # integers: the same to the last bit
                np.testing.assert_array_equal(values, expected[name], err_msg=name)
            else:
                np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)
    results = json.loads((out / "results.json").read_text())
    rounds = [e["round"] for e in results["ledger"]["entries"] if e["phase"] == "prune"]
    assert sorted(rounds) == [1, 1, 2, 2]
