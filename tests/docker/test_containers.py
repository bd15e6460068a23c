"""A server and three sites made of the compose files, as on four machines: TLS, keys, a gateway.

The sites have different texts. One of them is cut off in the middle of the job, and the masks must
be those of one process, byte for byte.
"""

import json
import pydoc_data.topics
import re
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client_app.app import app
from fedprune.models.export import SIDECAR
from server_app.job import run_job
from tests.support.compose import STEPS, Clock, Project, await_line, docker, finished, wheels
from tests.support.containers import DOCKER, no_engine
from tests.support.grid import LocalGrid
from tests.support.services import free_port

pytestmark = [pytest.mark.docker, pytest.mark.skipif(no_engine() != "", reason=no_engine())]

SITES = ("site-a", "site-b", "site-c")
PLANTED = "zanzibar-quokka-7431"
JOB = [
    "data=node",
    "strategy.min_clients=3",
    "strategy.timeout=900",
    "pruner.num_calibration_samples=4",
    "pruner.seq_len=64",
    "evaluation.max_windows=2",
]
RUN = "/var/lib/fedprune/runs/first"
CUT_SECONDS = 20.0


@dataclass
class Federation:
    """What runs, and where."""

    server: Project
    sites: list[Project]
    folder: Path
    address: str
    port: int
    clock: Clock

    @property
    def projects(self) -> list[Project]:
        return [self.server, *self.sites]


def write_texts(folder: Path) -> None:
    """Give each site texts of its own, and the server others."""
    homes = [folder / name for name in (*SITES, "heldout")]
    for home in homes:
        home.mkdir()
    for number, (name, text) in enumerate(sorted(pydoc_data.topics.topics.items())):
        (homes[number % 4] / f"{name}.txt").write_text(text)
    for home in homes[:3]:
        (home / "planted.txt").write_text(f"The patient {PLANTED} came on Monday.\n" * 20)


@pytest.fixture(scope="module")
def federation(request, tmp_path_factory) -> Iterator[Federation]:
    folder, run, clock = tmp_path_factory.mktemp("compose"), secrets.token_hex(4), Clock()
    # Where the sites' machines find the server: an address of this one that leads nowhere else.
    address = json.loads(docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]["Gateway"]
    port = free_port()
    write_texts(folder)
    common = {"TAG": run, "WHEELS_DIR": wheels() or DOCKER / "empty", "EXECUTOR_CPUS": 1}
    server = Project(
        f"fedprune-test-{run}",
        "compose.server.yaml",
        folder,
        **common,
        CERTS_DIR=folder / "certs",
        HELDOUT_DIR=folder / "heldout",
        FLEET_BIND=address,
        FLEET_PORT=port,
    )
    sites = [
        Project(
            f"fedprune-test-{run}-{site}",
            "compose.client.yaml",
            folder,
            **common,
            NODE_CERTS_DIR=folder / "certs" / "nodes" / site,
            SERVER=f"{address}:{port}",
            SITE=site,
            PARTITION_ID=number,
            NUM_PARTITIONS=3,
            DATA_DIR=folder / site,
        )
        for number, site in enumerate(SITES)
    ]
    made = Federation(server, sites, folder, address, port, clock)
    try:
        start(made)
        yield made
    finally:
        with clock.step("down"):
            for project in reversed(made.projects):
                project.down()
        request.config.stash[STEPS] = clock.steps


def start(made: Federation) -> None:
    clock, script = made.clock, ["env", f"CERTS_DIR={made.folder / 'certs'}", "./certs.sh"]
    with clock.step("certificates and keys"):
        finished([*script, "server", made.address], 60)
        finished([*script, "node", *SITES], 60)
    with clock.step("build the server's images"):
        made.server("build", timeout=900)
    with clock.step("build the sites' image"):
        made.sites[0]("build", timeout=900)
    with clock.step("start the server"):
        made.server("up", "--detach", "--wait", "--wait-timeout", "400")
    with clock.step("start three sites"):
        for site in made.sites:
            site("up", "--detach")
        for site in made.sites:
            site("up", "--detach", "--wait", "--wait-timeout", "400")


@pytest.fixture(scope="module")
def results(federation) -> Path:
    """Run the job with one site cut off in its middle, and bring home what it made."""
    clock, output = federation.clock, federation.folder / "output.txt"
    command = [*federation.server.words, "run", "--rm", "--no-TTY", "cli", "fedprune", "run", *JOB]
    command += ["federation.connection=server", "data.heldout_path=/heldout", f"output_dir={RUN}"]
    with clock.step("the job, one site cut off meanwhile"), output.open("w") as log:
        with subprocess.Popen(
            command, cwd=DOCKER, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process:
            await_line(output, "pruning 0/", 600, process)
            site = federation.sites[1]
            outside, container = f"{site.name}_outside", site.container("supernode")
            docker("network", "disconnect", outside, container)
            cut = time.monotonic()
            time.sleep(CUT_SECONDS)
            assert re.search(r"pruning (\d+)/\1\b", output.read_text()) is None
            docker("network", "connect", outside, container)
            clock.steps["  of it cut off"] = time.monotonic() - cut
            assert process.wait(900) == 0, output.read_text()
    federation.server("cp", f"executor:{RUN}", str(federation.folder / "results"))
    return federation.folder / "results"


@pytest.fixture(scope="module")
def expected(federation, tmp_path_factory) -> bytes:
    """The masks of the same job in one process that reads the sites' folders."""
    settings = {
        number: {
            "site": site,
            "partition-id": number,
            "num-partitions": 3,
            "data-path": str(federation.folder / site),
        }
        for number, site in enumerate(SITES)
    }
    folder = tmp_path_factory.mktemp("inline") / "run"
    overrides = " ".join([*JOB, f"data.heldout_path={federation.folder / 'heldout'}"])
    with federation.clock.step("the same job in one process"):
        grid = LocalGrid(app, 3, node_configs=settings)
        run_job(grid, {"overrides": overrides, "output-dir": str(folder)}, 7)
    return (folder / "model" / SIDECAR).read_bytes()


def asked(federation: Federation, path: str, method: str = "POST") -> int:
    """Return the status that an outsider gets, who knows the authority but has no key."""
    trust = ssl.create_default_context(cafile=federation.folder / "certs" / "ca.crt")
    url = f"https://{federation.address}:{federation.port}{path}"
    try:
        request = urllib.request.Request(url, method=method)
        return urllib.request.urlopen(request, timeout=10, context=trust).status
    except urllib.error.HTTPError as error:
        return error.code


def test_an_outsider_gets_through_to_nothing_but_health(federation):
    assert asked(federation, "/health", "GET") == 200
    for path in ("start-run", "stop-run", "list-runs", "register-node"):
        assert asked(federation, f"/v1/control/{path}") == 403
    assert asked(federation, "/v1/runtime/acquire-task") == 403
    assert asked(federation, "/v1/fleet/pull-messages") in (401, 403)


def test_the_host_reaches_only_the_gateways_port(federation):
    for project in federation.projects:
        for name in project("ps", "--format", "{{.Service}}").split():
            details = project.inspect(name)
            ports = details["NetworkSettings"]["Ports"]
            published = [port for binding in ports.values() for port in binding or []]
            if name == "gateway":
                wanted = {"HostIp": federation.address, "HostPort": str(federation.port)}
                assert published == [wanted]
            else:
                assert published == []
    link = federation.server.inspect("superlink")["NetworkSettings"]["Networks"]
    ((address,),) = [[network["IPAddress"]] for network in link.values()]
    # A machine whose way out ends in a proxy gets a connection to any address: TLS tells.
    trust = ssl.create_default_context(cafile=federation.folder / "certs" / "ca.crt")
    with pytest.raises(OSError), socket.create_connection((address, 8000), 3) as connected:
        trust.wrap_socket(connected, server_hostname="superlink")


def test_the_executor_beside_the_texts_has_no_way_out(federation):
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    site = federation.sites[0]
    out = [federation.address, str(federation.port)]
    assert site.execute("supernode", "python", "-c", connect, *out).returncode == 0
    assert site.execute("executor", "python", "-c", connect, *out).returncode == 1
    assert site.execute("executor", "python", "-c", connect, "runtime", "9094").returncode == 0


def test_containers_are_nobody_in_particular_and_change_nothing(federation):
    for project, services in [
        (federation.server, ("superlink", "executor", "gateway")),
        (federation.sites[0], ("supernode", "executor")),
    ]:
        for service in services:
            assert project.execute(service, "id", "--user").stdout.strip() == "49999"
            assert project.execute(service, "touch", "/new").returncode != 0
            assert project.execute(service, "touch", "/opt/new").returncode != 0
    assert federation.sites[0].execute("executor", "touch", "/data/new").returncode != 0
    assert federation.sites[0].execute("supernode", "ls", "/data").returncode != 0


def test_a_crashed_executor_comes_back(federation):
    site = federation.sites[2]
    kill = (
        "import os, pathlib\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    if b'flower-superexec' in path.read_bytes() and path.parent.name != '1':\n"
        "        os.kill(int(path.parent.name), 9)\n"
    )
    with federation.clock.step("a killed executor is back"):
        site.execute("executor", "python", "-c", kill)
        deadline = time.monotonic() + 300
        while not (
            site.inspect("executor")["RestartCount"] and site.health("executor") == "healthy"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_gives_the_masks_of_one_process(results, expected):
    found = json.loads((results / "results.json").read_text())
    names = [f"'{site}' (partition {number})" for number, site in enumerate(SITES)]
    assert [client["name"] for client in found["clients"]] == names
    assert found["ledger"]["refused"] == {}
    assert (results / "model" / SIDECAR).read_bytes() == expected


def test_a_second_registration_changes_nothing(federation):
    said = federation.server("run", "--rm", "--no-TTY", "registrar")
    assert said.count("registered before") == 3


def test_nothing_private_is_in_a_log(federation, results):
    for project in federation.projects:
        assert PLANTED not in project("logs", "--no-color")
    for path in results.rglob("*"):
        if path.is_file():
            assert PLANTED.encode() not in path.read_bytes()
