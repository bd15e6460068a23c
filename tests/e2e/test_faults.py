"""Processes of a federation die in the middle of a run; it ends with the same masks."""

import time

import pytest

from tests.e2e.test_flower_runs import sidecar
from tests.support.faults import QuickFederation, at_work, chunks_done, ledger, told
from tests.support.services import until

pytestmark = pytest.mark.e2e

OPTIONS = [
    "pruner.num_calibration_samples=4",
    "pruner.seq_len=64",
    "evaluation.local_only=false",
    "evaluation.centralized=false",
    "evaluation.max_windows=1",
    "schedule.blocks_per_message=3",
]


@pytest.mark.slow
def test_a_node_and_then_the_superlink_are_killed(tmp_path, expected):
    with QuickFederation(tmp_path, nodes=2, restart=True) as federation:
        run, node = federation.run(tmp_path / "run", *OPTIONS), federation.nodes[1]
        at_work(node, run)
        node.kill()
        told(run, "is lost")
        node.start()
        told(run, "is back")
        until(lambda: chunks_done(tmp_path / "run"), 900, "the first chunk is aggregated")
        federation.superlink.kill()
        time.sleep(2)
        federation.superlink.start()
        assert run.wait(900) == 0, run.err + federation.logs()
    assert sidecar(tmp_path / "run") == expected
    assert not ledger(tmp_path / "run")["refused"]
