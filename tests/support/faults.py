"""Federations of real processes that something happens to."""

import json
import os
import time
from pathlib import Path

from tests.support.federation import Command, Federation, Node
from tests.support.services import until

QUICK = """\
import sys

import flwr.common.constant

flwr.common.constant.HEARTBEAT_MIN_INTERVAL = 1
if any("supernode" in word for word in sys.orig_argv):
    import flwr.supercore.heartbeat
    import flwr.supernode.fleet_http_connection

    flwr.supercore.heartbeat.HEARTBEAT_DEFAULT_INTERVAL = 6
    flwr.supercore.heartbeat.HEARTBEAT_CALL_TIMEOUT = 1
    flwr.supernode.fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = 6
"""
"""SuperNodes' heartbeats five times as often: a lost one is noticed after 8 to 12 s, not 30 to 60.

Those of apps stay as they are: a busy machine needs its time to start a process.
"""


_PATIENCE = 900.0


class QuickFederation(Federation):
    """A federation that notices faults soon; parameters as :class:`Federation`."""

    def environment_in(self, folder: Path) -> dict[str, str]:
        """Return an environment in which Flower's heartbeats come soon."""
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(QUICK)
        environment = super().environment_in(folder)
        return environment | {"PYTHONPATH": os.pathsep.join([str(site), environment["PYTHONPATH"]])}


def orders(node: Node) -> int:
    """Return how many orders to prune a node has got."""
    return node.supernode.log.count("Receiving: train.prune")


def at_work(node: Node, run: Command, before: int = 0) -> None:
    """Wait until a node works on an order to prune that is not one of those before."""

    def working() -> bool:
        assert run.poll() is None, run.out + run.err
        kept = node.home.glob("nodes/job-*/partition-*/samples.safetensors")
        return orders(node) > before and bool(list(kept))

    until(working, _PATIENCE, f"{node.name} is at work")


def told(run: Command, words: str, seconds: float = _PATIENCE) -> float:
    """Wait until a run's log has these words; return how long that took."""
    started = time.monotonic()

    def there() -> bool:
        assert words in run.err or run.poll() is None, run.out + run.err
        return words in run.err

    until(there, seconds, f"the run says '{words}'")
    return time.monotonic() - started


def chunks_done(folder: Path) -> int:
    """Return how many chunks of blocks the run in a folder has aggregated."""
    try:
        state = json.loads((folder / "state" / "run.json").read_text())["state"]
    except FileNotFoundError:
        return 0
    return int(state["chunk"])


def ledger(folder: Path) -> dict[str, object]:
    """Return the ledger of a finished run."""
    found: dict[str, object] = json.loads((folder / "results.json").read_text())["ledger"]
    return found
