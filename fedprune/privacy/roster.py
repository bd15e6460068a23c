"""The roster: which sites make up a federation, by the keys that they sign with, signed by them.

A file in TOML that a person can read. Each site signs the hash of its content: names, keys, the
least cohort and how many signatures it takes, so that none of these changes without them. A node
with a roster trusts no key outside it, whatever a server says.
"""

import base64
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import tomli_w

from fedprune.config.suggest import did_you_mean, show
from fedprune.disk import replace_file
from fedprune.errors import ConfigError, listing
from fedprune.privacy.signing import SIGNATURE_BYTES, PublicKey, SigningKey

LEAST_COHORT = 2
"""A sum over fewer is one site's answer."""

_FORMAT, _VERSION, _PURPOSE = "fedprune-roster", 1, "roster"
_LONGEST_NAME = 64
_MOST_BYTES = 4_000_000
_MOST = 2**31 - 1
_CONTENT = ("format", "version", "min-cohort", "signatures-needed", "sites")
_MAKE = "Make one with: fedprune roster add ROSTER SITE KEY.pub"


@dataclass(frozen=True)
class Roster:
    """Sites, their keys, and what they have signed."""

    keys: Mapping[str, PublicKey]  # a site's name -> its key; no two have the same
    min_cohort: int = LEAST_COHORT  # no sum over fewer sites may be opened
    signatures_needed: int | None = None  # how many of the sites must have signed; None for all
    # a site's name -> what stands as its signature; `signed_by` says which hold
    signatures: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a roster's file; whether its signatures hold, :meth:`verify` says.

        Raises ConfigError if it cannot be read, or is no roster; says what is wrong with it.
        """
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"The roster '{path}' cannot be read: {error.strerror}. {_MAKE}",
                outside="This node's roster cannot be read; its own log says why.",
            ) from None
        return cls.parse(data, f"'{path}'")

    @classmethod
    def parse(cls, data: bytes, path: str) -> Self:
        """Read a roster from the bytes of its file; ``path`` is what an error calls it.

        Raises ConfigError if it is no roster; says what is wrong with it.
        """
        try:
            if len(data) > _MOST_BYTES:
                raise _wrong(path, f"it has more than {_MOST_BYTES:,} bytes")
            plain = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise _wrong(path, f"it is no TOML, {error}") from None
        for key in plain:
            if key not in (*_CONTENT, "signatures"):
                raise _wrong(path, f"{show(key)} is no key.{did_you_mean(key, _CONTENT)}")
        if (plain.get("format"), plain.get("version")) != (_FORMAT, _VERSION):
            raise _wrong(path, f"`format` must be '{_FORMAT}' and `version` {_VERSION}")
        keys = {
            name: PublicKey.parse(text, f"'{name}' in {path}")
            for name, text in _table(path, plain, "sites").items()
        }
        signatures = {
            name: _signature(path, name, text)
            for name, text in _table(path, plain, "signatures").items()
        }
        numbers = [_number(path, plain, key) for key in ("min-cohort", "signatures-needed")]
        found = cls(keys, numbers[0] or LEAST_COHORT, numbers[1], signatures)
        for problem in found.problems:
            raise _wrong(path, problem)
        return found

    def write(self, path: Path) -> None:
        """Write it as a file that :meth:`read` and people can read.

        Raises ConfigError if it cannot be written.
        """
        try:
            replace_file(path, self.text.encode())
        except OSError as error:
            raise ConfigError(f"The roster '{path}' cannot be written: {error.strerror}.") from None

    @property
    def text(self) -> str:
        """The file's content."""
        plain = self._content()
        plain["sites"] = {name: key.text for name, key in self.keys.items()}
        told = {name: base64.b64encode(one).decode() for name, one in self.signatures.items()}
        return tomli_w.dumps(plain | {"signatures": told})

    @property
    def problems(self) -> list[str]:
        """What is wrong with its content, in a clause each."""
        found = []
        names: dict[PublicKey, str] = {}
        for name, key in self.keys.items():
            if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
                found.append(
                    f"a site's name must have 1 to {_LONGEST_NAME} printable characters, got "
                    f"{show(name)}"
                )
            if key in names:
                found.append(f"{show(names[key])} and {show(name)} have the same key")
            names[key] = name
        if self.min_cohort < LEAST_COHORT:
            found.append(f"`min-cohort` must be at least {LEAST_COHORT}, got {self.min_cohort}")
        needed, strangers = self.signatures_needed, set(self.signatures) - set(self.keys)
        if needed is not None and not 1 <= needed <= max(1, len(self.keys)):
            found.append(
                f"`signatures-needed` must be 1 to {len(self.keys)}, the number of sites, got "
                f"{needed}; leave it out and all must sign"
            )
        found.extend(f"{show(name)} signed and is no site of it" for name in sorted(strangers))
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal digits; what the sites sign."""
        plain = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()

    @property
    def signed_by(self) -> tuple[str, ...]:
        """The sites whose signatures hold."""
        digest = bytes.fromhex(self.digest)
        return tuple(
            name
            for name, one in self.signatures.items()
            if name in self.keys and self.keys[name].holds(one, digest, purpose=_PURPOSE, run="")
        )

    def verify(self, own: PublicKey | None = None) -> None:
        """Trust it or raise.

        `own`: the key of the site that is about to trust it, which must have signed, however few
        signatures are needed: who can write the file but not sign gives it no other. Raises
        ConfigError if too few signatures hold, one does not, ``own`` is not in it or did not sign
        it, or there are fewer sites than its least cohort.
        """
        signed = self.signed_by
        needed = len(self.keys) if self.signatures_needed is None else self.signatures_needed
        broken = [name for name in self.signatures if name not in signed]
        sign = "fedprune roster sign ROSTER --key signing.key"
        if len(self.keys) < self.min_cohort:
            raise ConfigError(
                f"The roster has {len(self.keys)} sites and wants cohorts of {self.min_cohort} "
                "or more. Add sites, or lower `min-cohort`, and sign it again."
            )
        if broken:
            raise ConfigError(
                f"In the roster the signatures of {_listed(broken)} do not hold: it was changed "
                f"after they signed. Let them look at it and sign it again: {sign}"
            )
        if len(signed) < needed:
            missing = [name for name in self.keys if name not in signed]
            raise ConfigError(
                f"The roster has {len(signed)} of the {needed} signatures that it needs; "
                f"{_listed(missing)} did not sign. There: {sign}"
            )
        if own is None:
            return
        site = self.site_of(own)
        if site is None:
            raise ConfigError(
                f"This site's signing key ({own.fingerprint}) is not in the roster. Let it be "
                "added and signed, or name the key that is in it (`signing-key`)."
            )
        if site not in signed:
            raise ConfigError(
                f"This site, {show(site)}, did not sign the roster that it is to trust. After a "
                f"look at it: {sign}"
            )

    def site_of(self, key: PublicKey) -> str | None:
        """Return the name of the site with this key; None for a key outside the roster."""
        return next((name for name, one in self.keys.items() if one == key), None)

    def holds(self, site: str, signature: bytes, data: bytes, *, purpose: str, run: str) -> bool:
        """Whether a signature is that of a site in the roster, for this purpose and run."""
        key = self.keys.get(site)
        return key is not None and key.holds(signature, data, purpose=purpose, run=run)

    def changed(self, **values: Any) -> Self:
        """Return it with other content, and without the signatures of the old one."""
        found = replace(self, **values)
        return found if found.digest == self.digest else replace(found, signatures={})

    def signed(self, key: SigningKey) -> Self:
        """Return it with the signature of the site that has this key, and those that hold.

        Raises ConfigError if no site of it has the key.
        """
        site = self.site_of(key.public)
        if site is None:
            raise ConfigError(
                f"No site of the roster has the key {key.public.fingerprint}. Add it first: "
                "fedprune roster add ROSTER SITE KEY.pub"
            )
        made = key.sign(bytes.fromhex(self.digest), purpose=_PURPOSE, run="")
        kept = {name: self.signatures[name] for name in self.signed_by}
        return replace(self, signatures={**kept, site: made})

    def _content(self) -> dict[str, Any]:
        needed = self.signatures_needed
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "min-cohort": self.min_cohort,
            **({} if needed is None else {"signatures-needed": needed}),
            "sites": {name: key.raw.hex() for name, key in self.keys.items()},
        }


def _table(path: str, plain: Mapping[str, Any], key: str) -> dict[str, str]:
    table = plain.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise _wrong(path, f"[{key}] must be lines 'SITE = \"...\"', got {show(table)}")
    return table


def _number(path: str, plain: Mapping[str, Any], key: str) -> int | None:
    value = plain.get(key)
    if value is None or (type(value) is int and 0 <= value <= _MOST):
        return value
    raise _wrong(path, f"`{key}` must be a whole number, got {show(value)}")


def _signature(path: str, name: str, text: str) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        found = b""
    if len(found) != SIGNATURE_BYTES:
        raise _wrong(path, f"the signature of {show(name)} must be {SIGNATURE_BYTES} bytes, base64")
    return found


def _listed(names: list[str]) -> str:
    return listing([show(name) for name in names])


def _wrong(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"The roster {path} cannot be used: {why}.",
        outside="This node's roster cannot be used; its own log says why.",
    )
