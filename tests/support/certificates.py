"""A certificate authority, a server's certificate and key pairs of nodes, made in no time."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Who signs: its certificate as a file, and the key in memory."""

    path: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def authority(folder: Path, name: str = "ca") -> Authority:
    """Make a certificate authority; its certificate is ``NAME.crt`` in the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(f"test {name}")
    built = _valid(x509.CertificateBuilder(), days=10)
    built = built.subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.add_extension(x509.BasicConstraints(True, None), critical=True)
    built = built.add_extension(_usage(signs=True), critical=True)
    known = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    built = built.add_extension(known, critical=False)
    certificate = built.sign(key, hashes.SHA256())
    path = folder / f"{name}.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(path, certificate, key)


def server_certificate(
    folder: Path, issuer: Authority, name: str = "server", *names: str, expired: bool = False
) -> tuple[Path, Path]:
    """Make a server's certificate, ``NAME.crt``, and its key, ``NAME.key``, and return both.

    `names`: host names it holds for besides localhost and 127.0.0.1.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    hosts = [x509.DNSName(host) for host in ("localhost", *names)]
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    built = _valid(x509.CertificateBuilder(), days=-1 if expired else 10)
    built = built.subject_name(_named(name)).issuer_name(issuer.certificate.subject)
    built = built.public_key(key.public_key())
    built = built.add_extension(x509.SubjectAlternativeName([*hosts, address]), critical=False)
    built = built.add_extension(x509.BasicConstraints(False, None), critical=True)
    built = built.add_extension(_usage(signs=False), critical=True)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    built = built.add_extension(signer, critical=False)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    built = built.add_extension(purposes, critical=False)
    certificate = built.sign(issuer.key, hashes.SHA256())
    path = folder / f"{name}.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path, _private(folder / f"{name}.key", key)


def node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a node's key pair as ssh-keygen does: ``NAME`` and ``NAME.pub``; return both."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = folder / f"{name}.pub"
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    return _private(folder / name, key, serialization.PrivateFormat.OpenSSH), public


def _private(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> Path:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.touch(0o600)
    path.write_bytes(content)
    return path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _valid(built: x509.CertificateBuilder, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    built = built.serial_number(x509.random_serial_number())
    return built.not_valid_before(now - 10 * _DAY).not_valid_after(now + days * _DAY)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
