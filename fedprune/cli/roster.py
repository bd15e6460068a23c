"""`fedprune roster`: which sites make up a federation, and who has signed that."""

import sys
from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.errors import ConfigError
from fedprune.privacy.roster import Roster
from fedprune.privacy.signing import PublicKey, SigningKey
from fedprune.results.tables import text_table
from fedprune.results.text import count

_PIPE = "-"


def add_site(  # noqa: PLR0913
    path: Path, site: str, key: Path, *, min_cohort: int | None, signatures: int | None
) -> int:
    """Add a site or its new key, in a new file if there is none; return the exit code."""
    public = PublicKey.read(key)
    before = Roster.read(path) if path.exists() else Roster({})
    after = before.changed(
        keys={**before.keys, site: public},
        min_cohort=before.min_cohort if min_cohort is None else min_cohort,
        signatures_needed=before.signatures_needed if signatures is None else signatures,
    )
    for problem in after.problems:
        raise ConfigError(f"'{path}' stays as it is: {problem}.")
    after.write(path)
    screen = Console()
    say(screen, f"{site}  {public.fingerprint}")
    if before.signatures and not after.signatures:
        say(screen, "It is another roster now: all sites have to sign it again.")
    return 0


def sign_roster(path: Path, key: Path) -> int:
    """Sign as the site that has the key; return the exit code.

    With "-" for a path, the roster is read from standard input and written to standard output: a
    container has the key, and the file lies outside.
    """
    private, piped = SigningKey.read(key), str(path) == _PIPE
    before = Roster.parse(sys.stdin.buffer.read(), "that was piped") if piped else Roster.read(path)
    after = before.signed(private)
    if piped:
        sys.stdout.write(after.text)
    else:
        after.write(path)
    say(
        Console(stderr=piped),
        f"Signed as '{after.site_of(private.public)}', of the roster {after.digest}",
    )
    return 0


def show_roster(path: Path) -> int:
    """Print who is in it and who has signed; return the exit code, 1 if it does not hold."""
    roster = Roster.read(path)
    screen, needed = Console(), roster.signatures_needed
    states = dict.fromkeys(roster.keys, "no")
    states |= dict.fromkeys(roster.signatures, "does not hold")
    states |= dict.fromkeys(roster.signed_by, "holds")
    rows = [[name, key.fingerprint, states[name]] for name, key in roster.keys.items()]
    screen.print(text_table("roster", ["site", "key", "signature"], rows, labels=3))
    say(screen, f"No sum over fewer than {roster.min_cohort} sites is opened.")
    who = "all sites" if needed is None else f"{needed} of {count(len(roster.keys), 'site')}"
    say(screen, f"It holds once signed by {who}. All compare: {roster.digest}")
    try:
        roster.verify()
    except ConfigError as error:
        sys.stderr.write(f"fedprune roster: {error}\n")
        return 1
    return 0
