"""Start Flower's SuperExec, which starts the processes of the app, once there is somebody to ask.

    executor.py https://superlink:8000     beside the SuperLink
    executor.py http://runtime:9094        beside a SuperNode

SuperExec ends with 0 when its peer is not there or goes away. So this waits for the peer first, and
the restart policy must be one that restarts after a 0 too.
"""

import math
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from health import check

_AUTHORITY = "/run/secrets/ca.crt"
_SECRET = "/run/secrets/superexec.secret"
_CGROUP = Path("/sys/fs/cgroup")
_POLL_SECONDS = 1.0


def command(address: str) -> list[str]:
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


def main() -> None:
    """Wait for the peer and become the SuperExec."""
    address = sys.argv[1]
    _wait_for(address)
    count = str(threads(_CGROUP, os.cpu_count() or 1))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, count)
    words = command(address)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
