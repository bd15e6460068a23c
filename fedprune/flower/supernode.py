"""Run a site's SuperNode so that it takes only the app it knows and never lives on half dead.

Flower's main loop ends on errors it does not expect while a thread that serves the local API keeps
the process alive: health checks pass and the node is gone for good. The same holds after its
heartbeat has died. Here such a process ends with exit code 70, and whoever supervises it starts it
again. Without it: a site drops out of the federation for good and nobody is told.
"""

import hashlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedprune.errors import ConfigError, FedpruneError
from fedprune.flower.app import app_folder, staged
from fedprune.flower.reach import bypass_proxies_here, trouble

FAILED = 70
"""Exit code of a SuperNode that could not go on (EX_SOFTWARE); start it again."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Shorter than the five seconds after which Flower ends a process with a code of its own.
_GOODBYE_SECONDS = 4.0
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def own_app() -> str:
    """Return the SHA-256 (hex) of the bundle that this installation's own sources make.

    It is the same on every machine that has the same sources: Flower writes files in order, with
    a fixed date and uncompressed.

    Raises FedpruneError if fedprune was installed without its app, or Flower refuses to bundle it.
    """
    from flwr.cli.build import build_fab_from_disk

    with staged(app_folder()) as folder:
        try:
            bundle = build_fab_from_disk(folder)
        except ValueError as error:
            raise FedpruneError(f"Flower cannot bundle the app: {error}") from error
    return hashlib.sha256(bundle).hexdigest()


def allowed_apps(apps: Sequence[str], any_app: bool) -> frozenset[str] | None:
    """Return the digests of the apps that may run here, or None for any.

    `apps`: what `--app` names, besides this installation's own. `any_app`: whether `--any-app` is
    given. Raises ConfigError if a digest is none, or both options are given.
    """
    if any_app and apps:
        raise ConfigError("`--any-app` already allows what `--app` names. Give one of them.")
    if any_app:
        return None
    named = [app.lower() for app in apps]
    for app in named:
        if not _DIGEST.fullmatch(app):
            raise ConfigError(
                f"`--app` must be the SHA-256 of an app, 64 hexadecimal digits, got '{app}'. "
                "`fedprune supernode --print-app` prints that of an installation."
            )
    return frozenset([*named, own_app()])


def run_supernode(
    passed_on: Sequence[str], app: Sequence[str], *, any_app: bool, print_app: bool
) -> int:
    """Run Flower's SuperNode in this process until it ends, and end the process with it.

    `passed_on`: arguments of `flower-supernode`. `app`, `any_app`: as for :func:`allowed_apps`.
    `print_app`: only print the digest of this installation's own app, and return.
    """
    if print_app:
        sys.stdout.write(f"{own_app()}\n")
        return 0
    # Flower reads these when it is imported, and the user's own values go first.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Its executors inherit it: they speak to this process.
    bypass_proxies_here(os.environ)
    told = _trouble(passed_on)
    if told:
        sys.stderr.write(f"{told}\n")
    from flwr.supernode.cli.flower_supernode import flower_supernode

    from fedprune.flower.node_guard import NodeGuard, install

    install(NodeGuard(allowed_apps(app, any_app)))
    sys.argv = ["flower-supernode", *passed_on]
    failure = threading.Event()
    threading.excepthook = _Watch(failure)
    code = FAILED
    try:
        flower_supernode()
        sys.stderr.write(f"The SuperNode's main loop has ended, exit code {FAILED}.\n")
    except SystemExit as end:
        code = FAILED if failure.is_set() else _number(end.code)
    except BaseException:
        traceback.print_exc()
    _leave(code)


def _trouble(arguments: Sequence[str]) -> str:
    """Return why the SuperLink cannot be reached now; Flower tries on without a word."""
    address = _option(arguments, "--superlink")
    given = _option(arguments, "--root-certificates")
    authority = Path(given) if given else None
    return trouble(address, "--insecure" not in arguments, authority) if address else ""


def _option(arguments: Sequence[str], name: str) -> str:
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return ""


class _Watch:
    """Ends the process when a thread of Flower's dies: neither its heartbeat nor its API returns.

    `failure`: set before the process is asked to end.
    """

    def __init__(self, failure: threading.Event) -> None:
        self._failure = failure

    def __call__(self, died: threading.ExceptHookArgs) -> None:
        """Ask the main thread to say goodbye to the SuperLink, and end in any case."""
        if died.exc_type is SystemExit or self._failure.is_set():
            return
        self._failure.set()
        name = died.thread.name if died.thread else "a thread"
        traceback.print_exception(died.exc_value)
        sys.stderr.write(f"A part of the SuperNode has failed ({name}), exit code {FAILED}.\n")
        last = threading.Timer(_GOODBYE_SECONDS, _leave, [FAILED])
        last.daemon = True
        last.start()
        os.kill(os.getpid(), signal.SIGTERM)


def _number(code: object) -> int:
    if isinstance(code, int):
        return code
    if code is not None:
        sys.stderr.write(f"{code}\n")
    return 0 if code is None else 1


def _leave(code: int) -> NoReturn:
    """End the process although threads that never end are running."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
