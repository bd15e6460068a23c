"""What happens to a federation of real processes, and what is lost by it: nothing."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Error, Message

from client_app.app import app
from tests.e2e.test_faults import OPTIONS
from tests.e2e.test_flower_runs import sidecar
from tests.integration.test_main_job import job
from tests.support.faults import QuickFederation, at_work, ledger, orders, told
from tests.support.federation import CONNECTION
from tests.support.grid import LocalGrid
from tests.support.relay import Relay
from tests.support.services import free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

_SECONDS = 900.0


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    """The masks that three clients in one process give."""
    folder = tmp_path_factory.mktemp("three") / "run"
    return sidecar(job(folder, 3, overrides="evaluation.local_only=false"))


@pytest.fixture(scope="module")
def without_the_third(tmp_path_factory):
    """The masks that they give where the third is lost at once."""

    class Losing(LocalGrid):
        def deliver(self, message: Message) -> Message | None:
            if message.metadata.dst_node_id == 102 and message.metadata.message_type[:5] == "train":
                return Message(Error(5, "gone"), reply_to=message)
            return super().deliver(message)

    folder = tmp_path_factory.mktemp("two") / "run"
    overrides = "evaluation.local_only=false strategy.rejoin=0"
    return sidecar(job(folder, 3, overrides, grid=Losing(app, 3)))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three nodes, the third behind a network that can fail."""
    port = free_port()
    near = f"localhost:{port}"
    with Relay(port) as relay:
        fleet = [near, near, relay.address]
        folder = tmp_path_factory.mktemp("site")
        with QuickFederation(folder, nodes=3, restart=True, port=port, fleet=fleet) as federation:
            yield federation, relay


def test_cut_off_and_back_and_slow_from_then_on(site, tmp_path, of_three):
    federation, relay = site
    node = federation.nodes[2]
    before = orders(node)
    run = federation.run(tmp_path / "run", *OPTIONS)
    at_work(node, run, before)
    relay.cut = True
    told(run, "is lost")
    relay.cut, relay.rate = False, 30_000.0
    told(run, "is back")
    assert run.wait(_SECONDS) == 0, run.err + federation.logs()
    relay.rate = None
    assert sidecar(tmp_path / "run") == of_three
    assert not ledger(tmp_path / "run")["refused"]


def test_frozen_for_longer_than_it_is_waited_for(site, tmp_path, without_the_third):
    federation, _ = site
    options = [*OPTIONS, "strategy.min_clients=2", "strategy.rejoin=3"]
    node = federation.nodes[2]
    before = orders(node)
    run = federation.run(tmp_path / "run", *options)
    at_work(node, run, before)
    node.pause()
    told(run, "reply refused in round 1")
    assert "did not come back within 3 s (`strategy.rejoin`)" in run.err
    node.go_on()
    assert run.wait(_SECONDS) == 0, run.err + federation.logs()
    assert sidecar(tmp_path / "run") == without_the_third
    assert list(ledger(tmp_path / "run")["refused"].values()) == [1]
    until(lambda: federation.online() == 3, 180, "the third node is back")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 3 MB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_at_the_export(site, tmp_path, of_three):
    federation, _ = site
    with small_disk(tmp_path / "disk"):
        folder = tmp_path / "disk" / "run"
        run = federation.run(folder, *OPTIONS[:-1])
        assert run.wait(_SECONDS) == 1, run.err
        said = " ".join(run.err.split())
        assert "space" in said and f"resume={folder}" in said, said
        assert not (folder / "model").exists() and not (folder / "results.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder.parent)], check=True)
        again = federation.fedprune(
            "run", f"resume={folder}", f"federation.connection={CONNECTION}"
        )
        assert again.returncode == 0, again.stderr
        assert sidecar(folder) == of_three
