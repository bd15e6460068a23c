"""`fedprune status`: where a run is, for a person, a script or a monitoring system."""

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fedprune.cli.status_table import status_table, verdict_of
from fedprune.errors import ConfigError
from fedprune.home import home
from fedprune.reporting.exposition import exposition
from fedprune.reporting.gateway import GatewayTally, read_gateway
from fedprune.reporting.status import PROGRESS, Status, read_status

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Look:
    """What is looked at, and in which form.

    Attributes
    ----------
    run : str or None
        A run's folder; None takes the newest.
    gateway : str or None
        The file of a gateway's tally.
    form : str
        "table", "json" or "metrics".
    """

    run: str | None
    gateway: str | None = None
    form: str = "table"

    @property
    def folder(self) -> Path:
        """The run's folder; ConfigError if there is none."""
        return newest_run() if self.run is None else Path(self.run).expanduser()

    @property
    def tally(self) -> GatewayTally | None:
        """The gateway's tally, if one is asked for."""
        return None if self.gateway is None else read_gateway(Path(self.gateway).expanduser())


def run_status(look: Look) -> int:
    """Show where a run is and return the exit code 0.

    Raises
    ------
    FedpruneError
        If there is no run, or a file is damaged or of another version.
    """
    folder, now = look.folder, datetime.now(UTC)
    status, tally = read_status(folder), look.tally
    if look.form == "metrics":
        sys.stdout.write(exposition(status, status.stale(now), tally))
    elif look.form == "json":
        sys.stdout.write(_as_json(status, now, tally))
    else:
        Console().print(status_table(status, now, str(folder), tally), crop=False)
    return 0


def watch_status(look: Look) -> int:
    """Show where a run is, anew each second, until it ends.

    Returns
    -------
    int
        0 when it is done, 1 when it failed or its process seems to be dead.

    Raises
    ------
    FedpruneError
        As for :func:`run_status`.
    """
    folder, console = look.folder, Console()
    drawn = console.is_terminal and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False, transient=True) as live:
        told = ""
        while True:
            now, status, tally = datetime.now(UTC), read_status(folder), look.tally
            verdict = verdict_of(status, now)
            table = status_table(status, now, str(folder), tally)
            if drawn:
                live.update(table, refresh=True)
            elif f"{verdict} {status.phase}" != told:
                told = f"{verdict} {status.phase}"
                console.print(table, crop=False)
            if verdict != "running":
                break
            time.sleep(_LOOK_SECONDS)
    if drawn:
        console.print(table, crop=False)
    return 0 if verdict == "done" else 1


def newest_run() -> Path:
    """Return the folder of the run that was written to last.

    Raises
    ------
    ConfigError
        If there is none.
    """
    places = (Path("runs"), home() / "runs")
    found = [path for place in places for path in place.glob(f"*/{PROGRESS}")]
    if not found:
        raise ConfigError(
            f"There is no run in '{places[0].absolute()}' nor in '{places[1]}'. Give the folder of "
            "one: fedprune status RUN. The folder of a run on a SuperLink is on the machine of its "
            "ServerApp."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def _as_json(status: Status, now: datetime, tally: GatewayTally | None) -> str:
    """Return the run's file as it is, with what follows from it now."""
    plain = json.loads(status.to_json()) | {"stale": status.stale(now)}
    if tally is not None:
        plain["gateway"] = {"since": tally.since, "refused": tally.refused}
    return json.dumps(plain, indent=1) + "\n"
