"""The `fedprune` command; :mod:`fedprune.cli.commands` lists what it can do."""

import argparse
import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

import fedprune
from fedprune import __version__
from fedprune.cli.commands import COMMANDS, call
from fedprune.errors import ConfigError, FedpruneError
from fedprune.results.text import printable

_EXAMPLES = """examples:
  fedprune run                                     the embedded demo, as a simulation
  fedprune run sparsity=0.6 federation.num_clients=4
  fedprune run model=facebook/opt-125m data=/texts output_dir=runs/opt
  fedprune run federation.connection=production    on a SuperLink of Flower's configuration
  fedprune run federation.backend=inline           without Flower's runtime, starts at once
  fedprune run resume=runs/opt                     go on with a run that was interrupted
  fedprune status --watch                          where the newest run is, until it ends
  fedprune sweep sparsity=0.5,0.6 strategy.group=layer,row seed=0,1,2
  fedprune evaluate runs/opt evaluation.seq_len=512
  fedprune export runs/opt --push-to-hub me/opt-pruned
  fedprune doctor

exit codes: 0 done, 1 failed, 2 wrong configuration or usage, 130 interrupted; of supernode also 70:
start it again
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    `argv`: arguments without the program's name; those of the process if left out.
    """
    find_our_own()
    arguments = _parsed(argv)
    try:
        # A SuperNode answers to signals by itself.
        with nullcontext() if arguments.command == "supernode" else terminable():
            return call(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    except FedpruneError as error:
        if arguments.debug:
            raise
        sys.stderr.write(printable(f"fedprune {arguments.command}: {error}\n"))
        return 2 if isinstance(error, ConfigError) else 1


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, with which services are stopped, do what Ctrl-C does while this lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find_our_own() -> None:
    """Let Python find our packages, not others of their names in the user's folder or PYTHONPATH.

    `python -m` looks into the folder in which it is started, where many have a `client_app`.
    """
    root = Path(fedprune.__file__).resolve().parents[1]
    for name in ("client_app", "server_app", "strategies", "conf"):
        spec = importlib.util.find_spec(name)
        found = spec.origin if spec is not None else None
        if found is None or Path(found).resolve().parents[1] != root:
            sys.path.insert(0, str(root))
            return


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; overrides may stand before, after and between options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "passed_on"):
        if "--" in rest:
            rest.remove("--")
        arguments.passed_on = rest
        return arguments
    odd = [word for word in rest if word.startswith("-") or "=" not in word]
    if odd or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(odd or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedprune",
        description="Prune a language model together with the organisations that hold the data.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedprune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.description)
        one.set_defaults(function=command.function)
        if command.arguments is not None:
            command.arguments(one)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
