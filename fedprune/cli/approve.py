"""`fedprune approve`: the jobs that wait for this site's operator, and the operator's word."""

import sys

from rich.console import Console

from client_app.approval import approve, requests, told
from fedprune.cli.screen import say


def run_approve(job: str, *, whole: bool) -> int:
    """Show the jobs that nodes here were asked for, or approve one; return the exit code.

    Parameters
    ----------
    job : str
        The beginning of a job's key; "" shows all.
    whole : bool
        Whether to print the jobs' configurations, too.

    Raises
    ------
    ConfigError
        If no job, or more than one, begins like that.
    """
    found = approve(job) if job else requests()
    screen = Console()
    if not found:
        sys.stderr.write(
            "fedprune approve: no node of this machine and user was asked yet. A node asks "
            'with approve="ask" in its --node-config.\n'
        )
    for line in told(found):
        say(screen, line)
    if whole:
        for key in dict.fromkeys(one.key for one in found):
            say(screen, next(one.configuration for one in found if one.key == key))
    return 0
