"""`fedprune approve`: the jobs that wait for this site's operator, and the operator's word.

A word for one job, or a signature under a policy for many.
"""

import sys
from pathlib import Path

from rich.console import Console

from client_app.approval import approve, requests, told
from client_app.policy import Policy, signed_text
from fedprune.cli.screen import say
from fedprune.disk import replace_file
from fedprune.errors import ConfigError
from fedprune.privacy.signing import SigningKey

_PIPE = "-"


def run_approve(job: str, *, whole: bool, policy: Path | None, key: Path | None) -> int:
    """Show the jobs that nodes here were asked for, approve one, or sign a policy; return 0.

    `job`: the beginning of a job's key; "" shows all.
    """
    if policy is not None and key is not None and not job:
        return _sign_policy(policy, key)
    if policy is not None or key is not None:
        raise ConfigError("Say either JOB, or --policy POLICY and --key KEY.")
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
        for asked in dict.fromkeys(one.key for one in found):
            say(screen, next(one.configuration for one in found if one.key == asked))
    return 0


def _sign_policy(path: Path, key: Path) -> int:
    """Sign a standing policy after showing what it allows; return the exit code.

    With "-" for a path it is read from standard input and written to standard output.
    """
    piped = str(path) == _PIPE
    try:
        text = sys.stdin.read() if piped else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"The standing policy '{path}' cannot be read: {error}.") from None
    private, policy = SigningKey.read(key), Policy.parse(text.encode(), path)
    signed = signed_text(text, policy, private)
    Policy.parse(signed.encode(), path).verify(private.public)
    if piped:
        sys.stdout.write(signed)
    else:
        replace_file(path, signed.encode())
    screen = Console(stderr=piped)
    for line in policy.told():
        say(screen, line)
    say(screen, f"Signed with the key {private.public.fingerprint}")
    return 0
