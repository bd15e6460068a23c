"""Let nodes in and nobody else: nginx in front of the SuperLink, watched by this process.

    python gateway.py            run nginx until SIGTERM; SIGHUP reads certificates and names again
    python gateway.py --check    exit code 0 if the SuperLink answers through the gateway
    python gateway.py --show     print nginx's configuration and end

nginx tells of refusals through a pipe. They are told once for each address and kind, and counted in
``refused.json``. Certificates that were renewed and a SuperLink that got another address are
noticed within seconds. Standard library only.
"""

import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

from rendering import SettingError, Settings, render
from tally import Tally, load_tally, now, read_refusal, read_trouble

_WATCH_SECONDS = 5.0
_SAVE_SECONDS = 2.0
# Docker kills after ten seconds; what a worker carries gets most of them.
_END_SECONDS = 6.0
_TEMPLATE = Path(__file__).with_name("nginx.conf")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

_Seen = tuple[tuple[str, int], tuple[tuple[int, ...], ...]]

_log = logging.getLogger("gateway")


class Ledger:
    """The tally, its file, and the lines about it. Used by two threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._tally: Tally = load_tally(path, now())
        self._saved = -1
        self._summed = self._tally.total
        self._troubles: dict[str, datetime] = {}

    def read(self, lines: IO[str]) -> None:
        """Count what nginx tells until it ends."""
        for line in lines:
            if refusal := read_refusal(line):
                with self._lock:
                    first = self._tally.add(refusal, now())
                if first:
                    _log.warning(
                        "refused %s: %s (%s); further ones are counted",
                        refusal.address, refusal.kind, refusal.detail,
                    )  # fmt: skip
            elif trouble := read_trouble(line):
                self._tell(trouble)

    def save(self) -> None:
        """Write the file if anything was counted since."""
        with self._lock:
            if self._tally.total == self._saved:
                return
            try:
                self._tally.save(self._path, now())
            except OSError as error:
                self._tell(f"cannot write {self._path}: {error.strerror}")
            else:
                self._saved = self._tally.total

    def sum_up(self) -> None:
        """Write a line with all counters if any has changed since the last one."""
        with self._lock:
            if self._tally.total != self._summed:
                self._summed = self._tally.total
                _log.warning("%s", self._tally.summary())

    def _tell(self, trouble: str) -> None:
        """Say the same at most once a minute."""
        moment = now()
        last = self._troubles.get(trouble)
        if last is None or (moment - last).total_seconds() >= 60:
            self._troubles = dict(list(self._troubles.items())[-100:]) | {trouble: moment}
            _log.error("%s", trouble)


class Gateway:
    """nginx as a child process, its configuration and its log."""

    def __init__(self, settings: Settings, run: Path) -> None:
        self._settings = settings
        self._run = run
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._seen: _Seen = (("", 0), ())
        self._stop = False
        self._reload = False
        self._ledger = Ledger(Path(settings.state) / "refused.json")

    def serve(self) -> int:
        """Run until told to end, or until nginx ends; return the exit code."""
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGINT, self._told)
        signal.signal(signal.SIGHUP, self._told)
        if not self._await_superlink():
            return 0
        self._write()
        nginx = shutil.which("nginx", path=_PATH) or "nginx"
        command = [nginx, "-p", str(self._run), "-e", "stderr", "-c", str(self._configuration)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", process_group=0,
        ) as child:  # fmt: skip
            reader = threading.Thread(target=self._ledger.read, args=(child.stderr,), daemon=True)
            reader.start()
            threading.Thread(target=self._watch, daemon=True).start()
            _log.info("%s, to %s", self._settings.listen, self._settings.superlink)
            code = self._attend(child)
            # Workers outlive a master that was killed, and hold the pipe.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            reader.join(2)
        self._ended.set()
        self._ledger.save()
        self._ledger.sum_up()
        if self._stop:
            return 0
        _log.error("nginx ended with exit code %d", code)
        return code or 1

    @property
    def _configuration(self) -> Path:
        return self._run / "nginx.conf"

    def _attend(self, child: subprocess.Popen[str]) -> int:
        summed = time.monotonic()
        while child.poll() is None:
            self._wake.wait(_SAVE_SECONDS)
            self._wake.clear()
            if self._stop:
                return _end(child)
            if self._reload:
                self._reload = False
                with contextlib.suppress(OSError):
                    self._write()
                child.send_signal(signal.SIGHUP)
                _log.info("reading certificates and the SuperLink's address again")
            self._ledger.save()
            if time.monotonic() - summed >= self._settings.summary_seconds:
                summed = time.monotonic()
                self._ledger.sum_up()
        return child.returncode

    def _told(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stop = True
        self._wake.set()

    def _await_superlink(self) -> bool:
        said = False
        while not self._stop:
            try:
                self._seen = self._look()
                return True
            except OSError as error:
                if not said:
                    what = error.filename or self._settings.superlink
                    _log.warning("waiting for %s: %s", what, error.strerror)
                said = True
                self._wake.wait(1.0)
                self._wake.clear()
        return False

    def _look(self) -> _Seen:
        """Return the SuperLink's address, and what tells a renewed file from an old one."""
        host, _, port = self._settings.superlink.rpartition(":")
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        address = min((str(entry[4][0]), int(entry[4][1])) for entry in found)
        settings = self._settings
        files = [os.stat(name) for name in (settings.certificate, settings.key, settings.ca)]
        return address, tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in files)

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_SECONDS):
            with contextlib.suppress(OSError):
                seen = self._look()
                if seen != self._seen:
                    self._seen = seen
                    self._reload = True
                    self._wake.set()

    def _write(self) -> None:
        self._seen = self._look()
        host, port = self._seen[0]
        superlink = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        text = render(_TEMPLATE.read_text(), self._settings, superlink, self._run)
        self._configuration.write_text(text)


def check(settings: Settings) -> int:
    """Ask for the SuperLink's health through the gateway, as a node would; return 0 if it is."""
    context = ssl.create_default_context(cafile=settings.ca)
    # The certificate names the host that nodes know, and the question comes from inside.
    context.check_hostname = False
    try:
        url = f"https://127.0.0.1:{settings.port}/health"
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, urllib.error.URLError) as error:
        _log.error("no answer: %s", error)
        return 1


def _end(child: subprocess.Popen[str]) -> int:
    for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL):
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(_END_SECONDS if number == signal.SIGQUIT else 1.0)
    return child.wait()


def main(words: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="gateway: %(message)s")
    try:
        settings = Settings.of(os.environ)
    except SettingError as error:
        _log.error("%s", error)
        return 2
    if list(words) == ["--check"]:
        return check(settings)
    if list(words) == ["--show"]:
        text = render(_TEMPLATE.read_text(), settings, "192.0.2.1:8000", Path("/tmp/gateway"))
        sys.stdout.write(text)
        return 0
    if words:
        _log.error("unknown argument %r; known are --check and --show", words[0])
        return 2
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="gateway-") as run:
        return Gateway(settings, Path(run)).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
