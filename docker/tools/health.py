"""Health check of a service: what it needs is running, answers and can be written.

Exits with 0, or with 1 after one line that `docker inspect` shows. Standard library only, and the
interpreter is the image's own: no image needs curl.
"""

import argparse
import os
import ssl
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 4.0


def main() -> int:
    """Check what the arguments name and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="*", metavar="URL", help="must answer 200")
    parser.add_argument("--ca", default="/run/secrets/ca.crt", help="who vouches for https")
    parser.add_argument("--process", action="append", default=[], help="must be running")
    parser.add_argument("--writable", action="append", default=[], help="folder to write to")
    given = parser.parse_args()
    for trouble in troubles(given.urls, given.ca, given.process, given.writable):
        sys.stdout.write(f"{trouble}\n")
        return 1
    return 0


def troubles(
    urls: list[str], authority: str, processes: list[str], folders: list[str]
) -> Iterator[str]:
    """Yield what is wrong, one line each."""
    commands = list(_commands()) if processes else []
    for name in processes:
        if not any(name in command for command in commands):
            yield f"no process '{name}' is running"
    for folder in folders:
        if not os.access(folder, os.W_OK) or os.statvfs(folder).f_bavail == 0:
            yield f"'{folder}' cannot be written or its disk is full"
    for url in urls:
        try:
            check(url, authority)
        except OSError as error:
            yield f"{url}: {error}"


def check(url: str, authority: str) -> None:
    """Ask for a page; OSError if it does not answer 200 or its certificate is not trusted."""
    trust = ssl.create_default_context(cafile=authority) if url.startswith("https:") else None
    # As the service itself: through a proxy, if the environment names one, but for NO_PROXY's.
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust))
    with opener.open(url, timeout=_SECONDS):
        pass


def _commands() -> Iterator[list[str]]:
    """Yield the base names in the command line of every process but this one."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.parent.name == str(os.getpid()):
            continue
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        yield [os.path.basename(word) for word in words]


if __name__ == "__main__":
    raise SystemExit(main())
