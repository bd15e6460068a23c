"""What sites signed of a run: what each of them sent, and what the run made of it.

A file beside a model's provenance, or in a folder of statistics. It names keys, not sites: who they
are, a roster says. With every answer a site signs the hashes of what it sends; at the end those
that are still there sign the hash of the provenance or of the statistics as the server tells it.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedprune.disk import replace_file
from fedprune.errors import ConfigError, ModelError
from fedprune.privacy.roster import Roster
from fedprune.privacy.signing import PublicKey
from fedprune.results.provenance import SIGNATURES_OF_A_MODEL

SIGNATURES = SIGNATURES_OF_A_MODEL.name
FORMAT, VERSION = "fedprune-signatures", 1

ANSWER, MODEL, STATISTICS = "answer", "model", "statistics"
"""What signatures are for: hashes of what was sent, of a provenance, of a statistics folder."""

_THIS = {MODEL: "this model", STATISTICS: "these statistics"}


def digests_of(payloads: Mapping[int, bytes]) -> dict[str, str]:
    """Return block -> SHA-256 of what was sent of it."""
    return {str(block): hashlib.sha256(data).hexdigest() for block, data in payloads.items()}


def answer_statement(digests: Mapping[str, str]) -> bytes:
    """Return what a site signs of an answer."""
    return json.dumps(dict(digests), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class SignedAnswer:
    """An answer of a site."""

    digests: Mapping[str, str]  # of `digests_of`
    signature: bytes  # over `answer_statement`


@dataclass(frozen=True)
class SiteSignatures:
    """What one site signed."""

    answers: tuple[SignedAnswer, ...]  # what it sent, in the order of arrival
    results: Mapping[str, bytes]  # `MODEL`, `STATISTICS` -> its signature over that hash, 32 bytes


@dataclass(frozen=True)
class Signatures:
    """What the sites of a run signed."""

    job: str  # the run's key, 32 hexadecimal digits; every signature holds for it alone
    sites: Mapping[PublicKey, SiteSignatures]

    def write(self, path: Path) -> None:
        """Write the file."""
        sites = [
            {
                "key": key.text,
                "answers": [
                    {"digests": dict(one.digests), "signature": _text(one.signature)}
                    for one in site.answers
                ],
                "results": {name: _text(one) for name, one in site.results.items()},
            }
            for key, site in self.sites.items()
        ]
        plain = {"format": FORMAT, "version": VERSION, "job": self.job, "sites": sites}
        replace_file(path, (json.dumps(plain, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the file; None if there is none.

        Raises ModelError if it is damaged or of another form.
        """
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            head = plain["format"], plain["version"]
            if head != (FORMAT, VERSION):
                raise ValueError(f"it is of the form {head}, not {(FORMAT, VERSION)}")
            sites = {
                PublicKey.parse(str(one["key"]), "a site"): SiteSignatures(
                    tuple(
                        SignedAnswer(_digests(each["digests"]), _bytes(each["signature"]))
                        for each in one["answers"]
                    ),
                    {str(name): _bytes(text) for name, text in one["results"].items()},
                )
                for one in plain["sites"]
            }
            if len(sites) != len(plain["sites"]) or not isinstance(plain["job"], str):
                raise ValueError("a key stands in it twice, or it has no job")
        except FileNotFoundError:
            return None
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            ConfigError,
        ) as error:
            raise ModelError(f"'{path}' is damaged: {type(error).__name__}: {error}.") from error
        return cls(plain["job"], sites)


@dataclass(frozen=True)
class Verdict:
    """Whose signatures hold."""

    holds: tuple[str, ...]  # in a sentence each, who signed what
    wrong: tuple[str, ...]  # what does not hold, in a clause each


def judge(
    found: Signatures | None, what: str, digest: str, job: str, roster: Roster | None
) -> Verdict:
    """Say whose signatures under a model or statistics hold.

    `found`: the file; None if there is none. `what`: :data:`MODEL` or :data:`STATISTICS`. `digest`:
    SHA-256 of the provenance or of the statistics' manifest, as they are. `job`: the run that these
    say they are of; "" if they say none. `roster`: who the sites are, verified; without one only
    keys can be told.
    """
    if found is None or not found.sites:
        wrong = "no site of the roster signed it" if roster is not None else ""
        return Verdict(("Unsigned: no site has signed it.",), (wrong,) if wrong else ())
    if found.job != job:
        return Verdict(
            (), (f"its signatures are of the run {found.job}, it is of {job or 'none'}",)
        )
    holds: list[str] = []
    broken: list[str] = []
    for key, site in found.sites.items():
        name = _name(key, roster)
        problems = list(_problems(key, site, what, digest, job))
        if roster is not None and roster.site_of(key) is None:
            problems.append("is outside the roster")
        broken.extend(f"{name} {one}" for one in problems)
        if not problems:
            itself = _THIS[what] if what in site.results else f"not {_THIS[what]}"
            many = f"{len(site.answers)} answer{'' if len(site.answers) == 1 else 's'}"
            holds.append(f"{name} signed {many}, and {itself}.")
    if roster is None:
        holds.append("Who they are, a roster says: --roster ROSTER.")
    else:
        absent = [name for name, key in roster.keys.items() if key not in found.sites]
        holds.extend(f"'{name}' signed nothing of it." for name in absent)
    return Verdict(tuple(holds), tuple(broken))


def _problems(
    key: PublicKey, site: SiteSignatures, what: str, digest: str, job: str
) -> Iterator[str]:
    """Yield what of a site's signatures does not hold, in words that follow its name."""
    broken = sum(
        not key.holds(one.signature, answer_statement(one.digests), purpose=ANSWER, run=job)
        for one in site.answers
    )
    if broken:
        yield f"did not sign {broken} of the {len(site.answers)} answers that are called its"
    if not site.answers:
        yield "signed no answer of the run"
    made = site.results.get(what)
    if made is not None and not key.holds(made, bytes.fromhex(digest), purpose=what, run=job):
        yield (
            f"did not sign {_THIS[what]}: the signature is forged or that of another, or something "
            "was changed"
        )


def _name(key: PublicKey, roster: Roster | None) -> str:
    site = None if roster is None else roster.site_of(key)
    return f"the holder of {key.fingerprint}" if site is None else f"'{site}'"


def _text(signature: bytes) -> str:
    return base64.b64encode(signature).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _digests(plain: Mapping[str, Any]) -> dict[str, str]:
    if not all(isinstance(one, str) for one in plain.values()):
        raise ValueError("digests must be texts")
    return dict(plain)
