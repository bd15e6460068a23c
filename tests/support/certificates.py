"""A certificate authority, a server's certificate and key pairs of nodes, made in no time."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


@dataclass(frozen=True)
class Authority:
    """Who signs, and its certificate as a file."""

    path: Path
    signer: trustme.CA


def authority(folder: Path, name: str = "ca") -> Authority:
    """Make a certificate authority; its certificate is ``NAME.crt`` in the folder."""
    made = Authority(folder / f"{name}.crt", trustme.CA(organization_name=f"test {name}"))
    made.signer.cert_pem.write_to_path(made.path)
    return made


def server_certificate(
    folder: Path, issuer: Authority, name: str = "server", *names: str, expired: bool = False
) -> tuple[Path, Path]:
    """Make a server's certificate, ``NAME.crt``, and its key, ``NAME.key``, and return both.

    `names`: host names it holds for besides localhost and 127.0.0.1.
    """
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=-1 if expired else 10)
    made = issuer.signer.issue_cert("localhost", *names, "127.0.0.1", not_after=end)
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(made.cert_chain_pems[0].bytes())
    return certificate, _private(key, made.private_key_pem.bytes())


def node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a node's key pair as ssh-keygen does: ``NAME`` and ``NAME.pub``; return both."""
    key = ec.generate_private_key(ec.SECP384R1())
    content = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = folder / f"{name}.pub"
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return _private(folder / name, content), public


def _private(path: Path, content: bytes) -> Path:
    path.touch(0o600)
    path.write_bytes(content)
    return path
