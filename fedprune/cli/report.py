"""`fedprune report`: a run's page, made from its results."""

import webbrowser
from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.errors import FedpruneError
from fedprune.report.page import write_report
from fedprune.results.read import damage_told, read_results


def run_report(run: str, *, show: bool) -> int:
    """Write ``report.html`` into a run's folder, print its path and return the exit code 0."""
    folder = Path(run).expanduser()
    try:
        read_results(folder)
        with damage_told(folder):
            page = write_report(folder).absolute()
    except OSError as error:
        raise FedpruneError(f"'{folder}' cannot be written: {error.strerror}.") from None
    say(Console(), str(page))
    if show and not webbrowser.open(page.as_uri()):
        raise FedpruneError(f"No browser was found; open '{page}' yourself.")
    return 0
