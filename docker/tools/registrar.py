"""Tell the SuperLink which nodes may take part: every public key in a folder, one file a site.

    registrar.py                 register /run/keys/*.pub; what is known already stays
    registrar.py --remove SITE   shut a site out; its key has to leave the folder as well

Flower lists nodes by number alone, so the numbers are noted beside the sites' names.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

_KEYS = Path("/run/keys")
_NOTES = Path("/var/lib/fedprune/nodes.json")
_CONNECTION = "server"
_KNOWN = "already in use"


class Refused(Exception):
    """The SuperLink did not do what it was asked."""


def main() -> int:
    """Register or remove and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--remove", metavar="SITE", help="shut this site out")
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="end with 0 although a key was refused: the gateway opens for the others",
    )
    parser.add_argument("--keys", type=Path, default=_KEYS, help=f"({_KEYS})")
    parser.add_argument("--notes", type=Path, default=_NOTES, help=f"({_NOTES})")
    given = parser.parse_args()
    try:
        if given.remove:
            remove(given.remove, given.keys, given.notes)
        else:
            register(given.keys, given.notes)
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 0 if given.keep_going else 1
    return 0


def register(keys: Path, notes: Path) -> None:
    """Register every key in a folder; what was refused is told after all have been tried."""
    failures = []
    paths = sorted(keys.glob("*.pub"))
    if not paths:
        sys.stderr.write(f"There is no key in '{keys}': no node can take part yet.\n")
    for path in paths:
        try:
            answer = _flwr("register", str(path), _CONNECTION, "--name", path.stem)
        except Refused as error:
            if _KNOWN in str(error):
                sys.stdout.write(f"{path.stem}: registered before\n")
            else:
                failures.append(f"{path.stem}: {error}")
            continue
        _note(notes, path.stem, str(answer["node-id"]))
        sys.stdout.write(f"{path.stem}: registered as node {answer['node-id']}\n")
    if failures:
        raise Refused("\n".join(failures))


def remove(site: str, keys: Path, notes: Path) -> None:
    """Shut a site out; Refused if nobody knows its number, or Flower does not do it."""
    number = _noted(notes).get(site)
    if not number:
        raise Refused(
            f"There is no note of the number of '{site}'. Find it with "
            f"`flwr supernode list {_CONNECTION}` and `flwr supernode unregister` it by hand."
        )
    _flwr("unregister", number, _CONNECTION)
    _note(notes, site, None)
    sys.stdout.write(f"{site}: node {number} is shut out\n")
    if (keys / f"{site}.pub").exists():
        sys.stdout.write(f"Delete '{site}.pub' from the keys, or it will be registered again.\n")


def _flwr(*words: str) -> dict[str, object]:
    done = subprocess.run(
        ["flwr", "supernode", *words, "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    start = done.stdout.find("{")
    answer: dict[str, object] = {}
    if start >= 0:
        answer, _ = json.JSONDecoder().raw_decode(done.stdout, start)
    if done.returncode or not answer.get("success"):
        said = answer.get("error-message") or f"{done.stdout}{done.stderr}"
        raise Refused(str(said).strip())
    return answer


def _noted(notes: Path) -> dict[str, str]:
    return json.loads(notes.read_text()) if notes.exists() else {}


def _note(notes: Path, site: str, number: str | None) -> None:
    """Write down a site's number, or strike it out; the file is whole at any time."""
    table = {key: value for key, value in _noted(notes).items() if key != site}
    if number is not None:
        table[site] = number
    new = notes.with_suffix(".new")
    new.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    new.replace(notes)


if __name__ == "__main__":
    raise SystemExit(main())
