"""A site's signing key: Ed25519 signatures that say what they are for, and of which run.

The signatures are those of RFC 8032 as `cryptography` computes them. What is signed begins with a
label, so that a signature for one purpose or run is none for another.
"""

import base64
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedprune.config.suggest import show
from fedprune.errors import ConfigError

SIGNATURE_BYTES = 64

_LABEL = b"fedprune signature 1"
_MOST_BYTES = 16_384  # no key file is longer
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_MAKE_ONE = "`docker/certs.sh node SITE` or `ssh-keygen -t ed25519 -N '' -f signing.key` makes one."


@dataclass(frozen=True)
class PublicKey:
    """What others know of a site's signing key."""

    raw: bytes  # the 32 bytes of RFC 8032

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read a key as a line of OpenSSH (``ssh-ed25519 AAAA...``) or as PEM.

        `text`: the line; a comment after the key is dropped. Raises ConfigError if it is no Ed25519
        key.
        """
        data = text.strip().encode()
        try:
            if data.startswith(b"-----"):
                key = serialization.load_pem_public_key(data)
            else:
                key = serialization.load_ssh_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(
                f"The public key of {where} must be Ed25519, a line 'ssh-ed25519 AAAA...', got "
                f"{show(text)}. {_MAKE_ONE} Its public half is the file that ends in .pub."
            )
        return cls(key.public_bytes_raw())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key's file.

        Raises ConfigError if it cannot be read, or is no public Ed25519 key.
        """
        data = _contents(path, "public key")
        if b"PRIVATE KEY" in data:
            raise ConfigError(
                f"'{path}' is a private key, which no other site may see. Give its public half, "
                "the file that ends in .pub."
            )
        return cls.parse(data.decode(errors="replace"), f"'{path}'")

    @property
    def text(self) -> str:
        """The key as a line of OpenSSH, without a comment."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    @property
    def fingerprint(self) -> str:
        """What ``ssh-keygen -l`` prints of it, to be compared by telephone."""
        digest = hashlib.sha256(base64.b64decode(self.text.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def holds(self, signature: bytes, data: bytes, *, purpose: str, run: str) -> bool:
        """Whether a signature is this key's over ``data``, for this purpose and run."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        try:
            key.verify(signature, _labelled(data, purpose, run))
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """The private half; only its site's processes have it.

    `key`: of `cryptography`.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key from a file of PEM or OpenSSH.

        Raises ConfigError if it cannot be read, others than its owner can read it, it has a
        passphrase, or is no private Ed25519 key.
        """
        data = _contents(path, "signing key", private=True)
        try:
            ours = data.lstrip().startswith(_OPENSSH)
            load = (
                serialization.load_ssh_private_key if ours else serialization.load_pem_private_key
            )
            key: object = load(data, password=None)
        except TypeError:  # how `cryptography` says that it is encrypted
            raise _refused(
                path,
                "has a passphrase, which a node that starts by itself cannot type. Remove it: "
                f"ssh-keygen -p -N '' -f {path}",
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            encrypted = b"ENCRYPTED" in data
            why = "has a passphrase that cannot be read" if encrypted else "is no private key"
            raise _refused(path, f"{why}. {_MAKE_ONE}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise _refused(path, f"must be an Ed25519 key, it is another kind. {_MAKE_ONE}")
        return cls(key)

    def sign(self, data: bytes, *, purpose: str, run: str) -> bytes:
        """Return the 64 byte signature over ``data``, for one purpose and run ("": none)."""
        return self._key.sign(_labelled(data, purpose, run))


def _labelled(data: bytes, purpose: str, run: str) -> bytes:
    """Return what is signed: no two of purpose, run and data give the same."""
    parts = (_LABEL, purpose.encode(), run.encode())
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts) + data


def _contents(path: Path, what: str, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if private and stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise _refused(path, f"can be read by others. chmod 600 {path}")
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The {what} '{path}' cannot be read: {error.strerror}. {_MAKE_ONE}",
            outside=f"This node's {what} cannot be read; its own log says why.",
        ) from None
    if len(data) > _MOST_BYTES:
        raise _refused(path, f"is too long for a key. {_MAKE_ONE}")
    return data


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The signing key '{path}' {why}",
        outside="This node's signing key is not fit for use; its own log says why.",
    )
