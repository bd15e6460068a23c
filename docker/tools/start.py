"""Start the one of Flower's processes that a container is for, and become it.

    start.py executor https://superlink:8000     beside the SuperLink
    start.py executor http://runtime:9094        beside a SuperNode
    start.py supernode                           from the settings in the environment

SuperExec ends with 0 when its peer is not there or goes away. So this waits for the peer first, and
the restart policy must be one that restarts after a 0 too. It starts the processes of the app.

A SuperNode's settings are SERVER (host:port of the gateway), SITE, PARTITION_ID, NUM_PARTITIONS,
NODE_CONFIG with further ones in Flower's notation, and ALLOWED_APPS with the SHA-256 of apps that
may run here beside the one in this image.
"""

import math
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from health import check

_AUTHORITY = "/run/secrets/ca.crt"
_SECRET = "/run/secrets/superexec.secret"
_DEFAULTS = {"data-path": "/data", "signing-key": "/run/secrets/signing.key"}
_CGROUP = Path("/sys/fs/cgroup")
_POLL_SECONDS = 1.0
_SERVER = re.compile(r"\S+:\d{1,5}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NUMBER = re.compile(r"\d{1,6}")
# The keys of Flower's notation; what stands in quotes may look like one.
_KEY = re.compile(r"""(?:"[^"]*"|'[^']*')|(?<!\S)([A-Za-z][A-Za-z0-9-]*)=""")


def executor(address: str) -> list[str]:
    """Return the SuperExec for a Runtime API, over TLS if the address says https."""
    parts = urlsplit(address)
    trust = ["--root-certificates", _AUTHORITY] if parts.scheme == "https" else ["--insecure"]
    words = ["flower-superexec", *trust, "--runtime-api-address", parts.netloc]
    return [*words, "--superexec-auth-secret-file", _SECRET]


def threads(cgroup: Path, processors: int) -> int:
    """Return how many threads a container's limit of processor time pays for.

    Libraries count the host's processors and would start a thread for each.
    """
    try:
        if (cgroup / "cpu.max").exists():
            share, period = (cgroup / "cpu.max").read_text().split()
        else:  # control groups of the first version
            share = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        wanted = math.ceil(int(share) / int(period))
    except (OSError, ValueError):  # "max", or there is no such limit
        return processors
    return min(processors, wanted) if wanted > 0 else processors


def _wait_for(address: str) -> None:
    told = False
    while True:
        try:
            return check(f"{address}/health", _AUTHORITY)
        except OSError as error:
            if not told:
                sys.stderr.write(f"Waiting for {address}: {error}\n")
            told = True
        time.sleep(_POLL_SECONDS)


def node_config(environment: Mapping[str, str]) -> str:
    """Return Flower's node config; SystemExit if a setting is missing or wrong."""
    site = _checked(environment, "SITE", _SITE, "letters, digits, '.', '_' and '-'")
    partition = _checked(environment, "PARTITION_ID", _NUMBER, "a number, another for each node")
    words = [f'site="{site}"', f"partition-id={partition}"]
    if environment.get("NUM_PARTITIONS"):
        total = _checked(environment, "NUM_PARTITIONS", _NUMBER, "the number of nodes")
        words.append(f"num-partitions={total}")
    own = environment.get("NODE_CONFIG", "").strip()
    keys = set(_KEY.findall(own))
    for name, key in (("SITE", "site"), ("PARTITION_ID", "partition-id")):
        if key in keys:
            raise SystemExit(f"`{key}` must not be in NODE_CONFIG: say {name} in the node's .env.")
    if "num-partitions" in keys and environment.get("NUM_PARTITIONS"):
        raise SystemExit("`num-partitions` is in NODE_CONFIG and in NUM_PARTITIONS: say it once.")
    for key, path in _DEFAULTS.items():
        if key not in keys:
            words.append(f'{key}="{path}"')
    return " ".join(filter(None, [*words, own]))


def supernode(environment: Mapping[str, str]) -> list[str]:
    """Return the command that runs the SuperNode; SystemExit if a setting is missing or wrong."""
    server = _checked(environment, "SERVER", _SERVER, "host:port of the server's gateway")
    words = ["fedprune", "supernode"]
    for digest in environment.get("ALLOWED_APPS", "").split():
        words += ["--app", digest]
    words += ["--", "--superlink", server]
    words += ["--root-certificates", "/run/secrets/ca.crt"]
    words += ["--auth-supernode-private-key", "/run/secrets/node.key"]
    # `runtime` is this container in the network that it shares with the executor alone.
    words += ["--isolation", "process", "--host", "runtime", "--port", "9094"]
    words += ["--superexec-auth-secret-file", "/run/secrets/superexec.secret"]
    return [*words, "--node-config", node_config(environment)]


def _checked(
    environment: Mapping[str, str], name: str, pattern: re.Pattern[str], expected: str
) -> str:
    value = environment.get(name, "")
    if not pattern.fullmatch(value):
        raise SystemExit(f"`{name}` must be {expected}, got '{value}'. Set it in the node's .env.")
    return value


def main() -> None:
    """Become what the arguments name."""
    what, *rest = sys.argv[1:]
    if what == "executor":
        (address,) = rest
        _wait_for(address)
        count = str(threads(_CGROUP, os.cpu_count() or 1))
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ.setdefault(name, count)
        words = executor(address)
    else:
        words = supernode(os.environ)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
