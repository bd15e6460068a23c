"""A federation of plain processes with TLS and authenticated nodes, and whom both sides refuse."""

import contextlib
import json
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedprune.flower.app import app_folder, staged
from fedprune.flower.superlink import runtime_environment
from fedprune.flower.supernode import FAILED, own_app
from tests.e2e.test_flower_runs import SMALL, sidecar
from tests.support.certificates import authority, node_key, server_certificate
from tests.support.fake_superlink import fake_superlink
from tests.support.federation import CONNECTION, Federation, Node
from tests.support.services import Service, free_port, until

pytestmark = pytest.mark.e2e

PLANTED = "an app of somebody else's"
MASKS_ONLY = ["evaluation.local_only=false", "evaluation.centralized=false"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("federation"), nodes=2) as running:
        yield running


def test_another_app_is_refused_and_leaves_nothing_on_the_nodes(federation, tmp_path):
    with staged(app_folder()) as original:
        shutil.copytree(original, tmp_path / "fedprune")
    with (tmp_path / "fedprune" / "client_app" / "app.py").open("a") as file:
        file.write(f"\nPLANTED = {PLANTED!r}\n")
    done = federation.flwr(
        *("run", str(tmp_path / "fedprune"), CONNECTION, "--stream", "--run-config"),
        f"overrides=\"{' '.join(SMALL)}\" output-dir='{tmp_path / 'out'}'",
    )
    said = done.stdout + done.stderr
    assert "0 of 2 nodes can take part" in said, said
    assert own_app() in said and "--print-app" in said
    for node in federation.nodes:
        assert node.supernode.log.count("Refused: this site does not run the app") == 1
        assert node.supernode.alive
        assert not (node.folder / "flwr" / "apps").exists()
        for path in filter(Path.is_file, node.folder.rglob("*")):
            assert PLANTED.encode() not in path.read_bytes(), path


def test_secure_federation_gives_the_masks_of_one_process(federation, expected, tmp_path):
    run = federation.run(tmp_path / "out", *SMALL, *MASKS_ONLY)
    assert run.wait(900) == 0, run.out + run.err + federation.logs()
    assert sidecar(tmp_path / "out") == expected
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [client["name"] for client in results["clients"]] == [
        "'site-0' (partition 0)",
        "'site-1' (partition 1)",
    ]
    for node in federation.nodes:
        assert not list(node.home.glob("nodes/run-*/partition-*"))
    trace = re.search(r"(?s)Traceback.{,3000}", federation.logs())
    assert trace is None, trace[0]


def test_a_node_that_is_ended_says_goodbye_and_may_come_back_at_once(federation):
    node = federation.nodes[1]
    before = {info.node_id for info in federation.listed()}
    assert node.supernode.end() == 0
    assert federation.online() == 1
    node.kill()
    node.start()
    until(lambda: federation.online() == 2, 120, f"back\n{node.supernode.log}")
    assert {info.node_id for info in federation.listed()} == before


def test_whoever_is_not_registered_or_not_sure_of_the_server_stays_outside(federation, tmp_path):
    ca = ["--root-certificates", str(federation.ca.path)]
    unknown, twin = (str(node_key(tmp_path, name)[0]) for name in ("unknown", "twin"))
    own = str(federation.nodes[0].key)
    before = {node.node_id for node in federation.listed()}
    with expired_server(tmp_path) as (other_ca, other):
        strangers = {
            "an unregistered key": [*ca, "--auth-supernode-private-key", unknown],
            "a registered node's name and another key": [
                *(*ca, "--auth-supernode-private-key", twin),
                *("--node-config", 'partition-id=0 num-partitions=2 site="site-0"'),
            ],
            "no key at all": ca,
            "plain text": ["--insecure"],
            "no authority": ["--auth-supernode-private-key", own],
            "an expired certificate": [
                *("--root-certificates", other_ca, "--auth-supernode-private-key", own),
                *("--superlink", other),
            ],
        }
        services = {
            name: stranger(federation, tmp_path / f"{number}", words)
            for number, (name, words) in enumerate(strangers.items())
        }
        try:
            ends = {name: service.wait(120) for name, service in services.items()}
        finally:
            for service in services.values():
                service.kill()
    logs = {name: service.log for name, service in services.items()}
    assert all(ends.values()), logs
    assert "expired" in logs["an expired certificate"]
    assert "CERTIFICATE_VERIFY_FAILED" in logs["no authority"], logs["no authority"]
    assert {node.node_id for node in federation.listed()} == before
    assert federation.online() == 2
    assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.log"))


def stranger(federation: Federation, folder: Path, words: list[str]) -> Service:
    """Start a SuperNode that is not the federation's."""
    environment = federation.environment_in(folder)
    command = [*federation.supernode_command, "--superlink", federation.address, *words]
    command += ["--isolation", "process", *federation.secret_words, "--max-retries", "1"]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    service = Service(command, folder / "work", environment, folder / "supernode.log")
    service.start()
    return service


@contextlib.contextmanager
def expired_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Listen with a certificate that ran out; yield its authority's file and its address."""
    issuer = authority(folder, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server_certificate(folder, issuer, "expired", expired=True))
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller = listening.accept()[0]
                    with contextlib.suppress(OSError), caller:
                        context.wrap_socket(caller, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield str(issuer.path), f"localhost:{listening.getsockname()[1]}"


def started(folder: Path, name: str, command: list[str], address: str) -> Service:
    words = ["--insecure", "--superlink", address, "--isolation", "process"]
    words += ["--host", "127.0.0.1", "--port", str(free_port())]
    environment = runtime_environment() | {"PYTHONPATH": str(Path(__file__).parents[2])}
    service = Service([*command, *words], folder, environment, folder / f"{name}.log")
    service.start()
    return service


@pytest.mark.parametrize("failing", ["pull-messages", "send-node-heartbeat"])
def test_half_dead_ends_and_says_goodbye_where_flower_lives_on(tmp_path, failing):
    """One answer with status 500, and the node would be offline for good."""
    ours = [sys.executable, "-m", "fedprune", "supernode", "--any-app"]
    with fake_superlink(failing) as fake, fake_superlink(failing) as other:
        node = started(tmp_path, "ours", ours, fake.address)
        flower = started(tmp_path, "flower", ["flower-supernode"], other.address)
        try:
            assert node.wait(120) == FAILED, node.log
            assert "deactivate-node" in fake.calls
            assert "exit code 70" in node.log
            until(lambda: "500" in flower.log, 120, f"failed\n{flower.log}")
            time.sleep(2)
            assert flower.alive
        finally:
            node.kill()
            flower.kill()


def workers(node: Node) -> set[psutil.Process]:
    found = set()
    for process in node.executor.processes():
        with contextlib.suppress(psutil.Error):
            if any("flwr-clientapp" in word for word in process.cmdline()):
                found.add(process)
    return found


def at_work(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("libtorch" in each.path for each in process.memory_maps())
    return False


@pytest.mark.faults
def test_a_process_ended_in_the_middle_of_its_work_is_answered_for(federation, tmp_path):
    """Flower's SuperNode would wait for that reply for ever, and so would the server."""
    said = len(federation.nodes[1].supernode.log)
    starts = federation.nodes[1].supernode.starts
    more = ("pruner.num_calibration_samples=64", "strategy.min_clients=1")
    run = federation.run(tmp_path / "out", *SMALL, *MASKS_ONLY, *more)
    node = federation.nodes[1]
    earlier: set[psutil.Process] = set()

    def asked_to_prune() -> bool:
        found = workers(node)
        if "Receiving: train.prune" in node.supernode.log[said:]:
            return True
        earlier.update(found)
        return False

    until(asked_to_prune, 900, "asked to prune")
    until(lambda: any(at_work(one) for one in workers(node) - earlier), 900, "at work")
    for worker in workers(node) - earlier:
        worker.terminate()
    assert run.wait(900) == 0, run.err + federation.logs()
    assert "ended without a reply" in node.supernode.log
    assert node.supernode.starts == starts and node.supernode.alive
