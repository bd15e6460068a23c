"""The report beside a run's results; a run never fails because of it."""

from logging import WARNING
from pathlib import Path

from flwr.common.logger import log

from fedprune.report.page import write_report


def leave_report(folder: Path) -> None:
    """Write ``report.html`` into a finished run's folder, or log why that was not possible."""
    try:
        write_report(folder)
    except Exception as error:
        log(WARNING, "no report was written: %s: %s", type(error).__name__, error)
