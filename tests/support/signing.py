"""Signing keys of sites, and rosters that they signed, made in no time."""

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedprune.privacy.roster import Roster
from fedprune.privacy.signing import SigningKey


def signing_key(path: Path | None = None) -> SigningKey:
    """Make a key; with ``path``, also its file and the public half beside it (``.pub``)."""
    key = Ed25519PrivateKey.generate()
    made = SigningKey(key)
    if path is not None:
        path.touch(0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        path.with_name(f"{path.name}.pub").write_text(f"{made.public.text} {path.stem}\n")
    return made


def signed_roster(keys: dict[str, SigningKey], min_cohort: int = 2) -> Roster:
    """Make a roster of sites that all of them have signed."""
    roster = Roster({site: key.public for site, key in keys.items()}, min_cohort)
    for key in keys.values():
        roster = roster.signed(key)
    return roster


def site_keys(sites: Sequence[str], folder: Path | None = None) -> dict[str, SigningKey]:
    """Make a key for each site, as files ``SITE.key`` where a folder is given."""
    return {site: signing_key(folder and folder / f"{site}.key") for site in sites}
