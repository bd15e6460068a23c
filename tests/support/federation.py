"""A whole federation of real processes on the loopback interface, as containers would run it.

A SuperLink with a database, process isolation, TLS and authenticated nodes; an executor for
ServerApps; for each node a SuperNode and an executor with folders of their own.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

from fedprune.disk import home
from fedprune.flower.superlink import runtime_environment
from tests.support.certificates import authority, node_key, server_certificate
from tests.support.services import Command, Service, free_port, listens, until

CONNECTION = "site"
_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("flwr", "home", "work", "tmp")


class Node:
    """A site: the SuperNode, and the executor that sees the data.

    `folder`: everything its processes write lies below it: home, flwr, work and tmp. `key`,
    `public`: its key pair; only with TLS.
    """

    def __init__(self, federation: "Federation", number: int, config: str, fleet: str) -> None:
        self.name = f"site-{number}"
        self.folder = federation.folder / f"node-{number}"
        self.home = self.folder / "home"
        self.port = free_port()
        environment = federation.environment_in(self.folder)
        command = [*federation.supernode_command, *federation.tls_words, "--superlink", fleet]
        if federation.tls:
            self.key, self.public = node_key(federation.certificates, self.name)
            command += ["--auth-supernode-private-key", str(self.key)]
        command += ["--isolation", "process", *federation.secret_words]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--node-config", config]
        self.supernode = federation.service(f"supernode-{number}", command, environment)
        self.executor = federation.service(
            f"executor-{number}",
            ["flower-superexec", "--insecure", "--runtime-api-address", f"127.0.0.1:{self.port}"]
            + federation.secret_words,
            environment,
        )

    def start(self) -> None:
        """Start both."""
        self.supernode.start()
        until(lambda: listens(self.port), 180, f"{self.name} listens", poll=0.2)
        self.executor.start()

    def kill(self) -> None:
        """Kill both with SIGKILL, and all they have started."""
        self.supernode.kill()
        self.executor.kill()

    def pause(self) -> None:
        """Freeze both."""
        self.supernode.pause()
        self.executor.pause()

    def go_on(self) -> None:
        """Let both go on."""
        self.supernode.go_on()
        self.executor.go_on()


class Federation:
    """A SuperLink, its executor and nodes; everything is killed at the end of ``with``.

    `nodes`: how many, or the node-config of each. `tls`: with certificates and authenticated nodes,
    or in plain text. `restart`: start services that end again after two seconds. `port`: the
    SuperLink's port; a free one if left out. `fleet`: for each node the address it takes for the
    SuperLink's, to put something in between. `supernode`: further arguments of every SuperNode.
    """

    def __init__(  # noqa: PLR0913
        self,
        folder: Path,
        nodes: int | Sequence[str] = 3,
        tls: bool = True,
        restart: bool = False,
        port: int | None = None,
        fleet: Sequence[str] = (),
        supernode: Sequence[str] = (),
    ) -> None:
        self.folder, self.tls, self.restart = folder, tls, restart
        self.port = port or free_port()
        self.address = f"localhost:{self.port}"
        self.certificates = folder / "certificates"
        self.certificates.mkdir()
        (folder / "logs").mkdir()
        self.secret_words = ["--superexec-auth-secret-file", str(folder / "secret")]
        (folder / "secret").write_text("a secret of this test\n")
        self.supernode_command = [sys.executable, "-m", "fedprune", "supernode", *supernode]
        self.ca = authority(self.certificates)
        self.tls_words = ["--root-certificates", str(self.ca.path)] if tls else ["--insecure"]
        self.environment = self.environment_in(folder / "server")
        self._write_connection()
        self.superlink = self.service("superlink", self._superlink(), self.environment)
        words = ["--runtime-api-address", self.address, *self.tls_words, *self.secret_words]
        self.server_executor = self.service(
            "executor-server", ["flower-superexec", *words], self.environment
        )
        if isinstance(nodes, int):
            text = 'partition-id={0} num-partitions={1} site="site-{0}"'
            nodes = [text.format(number, nodes) for number in range(nodes)]
        fleets = fleet or [self.address] * len(nodes)
        self.nodes = [
            Node(self, number, config, address)
            for number, (config, address) in enumerate(zip(nodes, fleets, strict=True))
        ]
        self._commands: list[Command] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def fedprune(
        self, *words: str, seconds: float = 900, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Type a `fedprune` command in the federation's folder and wait for its end."""
        return subprocess.run(
            [sys.executable, "-m", "fedprune", *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def begin(self, *words: str, **environment: str) -> Command:
        """Start a `fedprune` command in the federation's folder; at the end it is killed."""
        log = self.folder / "logs" / f"command-{len(self._commands)}"
        command = [sys.executable, "-m", "fedprune", *words]
        begun = Command(command, self.folder, log, {**self.environment, **environment})
        self._commands.append(begun)
        return begun

    def run(self, folder: Path, *options: str) -> Command:
        """Start a run over this federation, its results in a folder."""
        words = (*options, f"federation.connection={CONNECTION}", f"output_dir={folder}")
        return self.begin("run", *words)

    def flwr(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a `flwr` command and wait for its end."""
        return subprocess.run(
            ["flwr", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def control(self) -> ControlHttpClient:
        """Return a client of the SuperLink's Control API; close it."""
        return ControlHttpClient.from_server_address(
            self.address,
            not self.tls,
            str(self.ca.path) if self.tls else None,
            [RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def register(self, public: Path, name: str) -> int:
        """Register a node's public key as `flwr supernode register` does; return the node's id."""
        request = RegisterNodeRequest(public_key=try_load_public_key(public), name=name)
        with self.control() as control:
            return control.RegisterNode(request).node_id

    def listed(self) -> list[NodeInfo]:
        """Return what `flwr supernode list` shows."""
        with self.control() as control:
            return list(control.ListNodes(ListNodesRequest()).nodes_info)

    def online(self) -> int:
        """Return how many nodes are online in the SuperLink's view."""
        return sum(node.status == "online" for node in self.listed())

    def services(self) -> list[Service]:
        """Return all services."""
        sites = [each for node in self.nodes for each in (node.executor, node.supernode)]
        return [*sites, self.server_executor, self.superlink]

    def logs(self) -> str:
        """Return the logs of all services, for a failed test's message."""
        return "\n".join(f"== {' '.join(one.command[:3])}\n{one.log}" for one in self.services())

    def service(self, name: str, command: Sequence[str], environment: dict[str, str]) -> Service:
        """Make a service with a log in the federation's folder."""
        folder = Path(environment["TMPDIR"]).parent / "work"
        log = self.folder / "logs" / f"{name}.log"
        return Service(command, folder, environment, log, self.restart)

    def environment_in(self, folder: Path) -> dict[str, str]:
        """Return an environment whose processes write below a new folder only."""
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True)
        # What is made of sources is the same everywhere, and takes a minute: all homes share it.
        for name in ("numba", "texts"):
            (home() / name).mkdir(parents=True, exist_ok=True)
            (folder / "home" / name).symlink_to(home() / name)
        return runtime_environment() | {
            "FLWR_HOME": str(folder / "flwr"),
            "FEDPRUNE_HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
            "PYTHONPATH": str(_ROOT),
        }

    def _superlink(self) -> list[str]:
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--isolation", "process", *self.secret_words]
        command += ["--database", str(self.folder / "server" / "state.db")]
        if not self.tls:
            return [*command, "--insecure"]
        certificate, key = server_certificate(self.certificates, self.ca)
        command += ["--ssl-ca-certfile", str(self.ca.path), "--ssl-certfile", str(certificate)]
        return [*command, "--ssl-keyfile", str(key), "--enable-supernode-auth"]

    def _write_connection(self) -> None:
        secured = f'root-certificates = "{self.ca.path}"' if self.tls else "insecure = true"
        Path(self.environment["FLWR_HOME"], "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{self.address}"\n{secured}\n'
        )

    def _start(self) -> None:
        self.superlink.start()
        until(lambda: listens(self.port), 180, "the SuperLink listens", poll=0.2)
        if self.tls:
            for node in self.nodes:
                self.register(node.public, node.name)
        for service in [self.server_executor, *(node.supernode for node in self.nodes)]:
            service.start()
        for node in self.nodes:
            node.start()
        until(lambda: self.online() == len(self.nodes), 180, f"all online\n{self.logs()}", poll=0.2)

    def _kill(self) -> None:
        for command in self._commands:
            command.kill()
            command.wait(10)
        for service in self.services():
            service.kill()
