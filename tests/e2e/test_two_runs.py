"""Two runs share a federation of real processes while some of them die."""

import signal
from contextlib import suppress

import psutil
import pytest

from tests.e2e.test_faults import OPTIONS
from tests.e2e.test_flower_runs import sidecar
from tests.integration.test_main_job import job
from tests.support.faults import at_work, orders, told
from tests.support.federation import CONNECTION, Federation
from tests.support.services import Service

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

_SECONDS = 900.0


def killed(service: Service, name: str) -> int:
    """Kill a service's processes of a name; return how many there were."""
    found = 0
    for process in service.processes():
        with suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                found += 1
    return found


def test_two_runs_at_once_a_node_and_a_server_app_killed(tmp_path, expected):
    """With Flower's own heartbeats."""
    other = sidecar(job(tmp_path / "other", 2, "evaluation.local_only=false sparsity=0.6"))
    with Federation(tmp_path, nodes=2, restart=True) as federation:
        node, first = federation.nodes[1], tmp_path / "first"
        killed_run = federation.run(first, *OPTIONS)
        at_work(node, killed_run)
        assert killed(federation.server_executor, "flwr-serverapp")
        second = federation.run(tmp_path / "second", *OPTIONS, "sparsity=0.6")
        at_work(node, second, orders(node))
        node.kill()
        node.start()
        assert killed_run.wait(_SECONDS) == 1
        assert f"resume=FOLDER federation.connection={CONNECTION}" in killed_run.err
        resumed = federation.begin("run", f"resume={first}", f"federation.connection={CONNECTION}")
        told(second, "is lost", _SECONDS)
        told(second, "is back", _SECONDS)
        assert second.wait(_SECONDS) == 0, second.err + federation.logs()
        assert resumed.wait(_SECONDS) == 0, resumed.err + federation.logs()
    assert sidecar(tmp_path / "second") == other
    assert sidecar(first) == expected
