"""Commands of a federation on many machines: a site's SuperNode, a run's progress."""

from argparse import ArgumentParser, Namespace


def supernode_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `fedprune supernode`."""
    # What is not known goes to `flower-supernode`, and nothing of it may be taken for a short form.
    parser.allow_abbrev = False
    parser.usage = "%(prog)s [options] [--] ARGUMENTS OF flower-supernode"
    parser.set_defaults(passed_on=[])
    parser.add_argument(
        "--app",
        action="append",
        default=[],
        metavar="SHA256",
        help="also run the app with this digest; may be repeated",
    )
    parser.add_argument("--any-app", action="store_true", help="run whatever the server sends")
    parser.add_argument(
        "--print-app", action="store_true", help="print the digest of this installation's app only"
    )


def supernode(arguments: Namespace) -> int:
    """Run `fedprune supernode`."""
    from fedprune.cli.supernode import run_print_app, run_supernode

    if arguments.print_app:
        return run_print_app()
    run_supernode(arguments.passed_on, arguments.app, arguments.any_app)


def status_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `fedprune status`."""
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run's folder; the newest run if left out"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--watch", action="store_true", help="show it until the run ends; exit 1 if it fails"
    )
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument(
        "--metrics", action="store_true", help="print metrics in the text format of Prometheus"
    )
    parser.add_argument("--gateway", metavar="FILE", help="also what a gateway refused: its tally")


def status(arguments: Namespace) -> int:
    """Run `fedprune status`."""
    from fedprune.cli.status import Look, run_status, watch_status

    form = "json" if arguments.json else "metrics" if arguments.metrics else "table"
    look = Look(arguments.run, arguments.gateway, form)
    return watch_status(look) if arguments.watch else run_status(look)
