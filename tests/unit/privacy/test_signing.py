"""A site's key: files that are fit and unfit, and signatures that hold for one thing only."""

import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import ConfigError
from fedprune.privacy.signing import PublicKey, SigningKey
from tests.support.signing import signing_key

needs_ssh_keygen = pytest.mark.skipif(
    not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed"
)


def keygen(*words) -> str:
    done = subprocess.run(["ssh-keygen", *words], check=True, capture_output=True, text=True)
    return done.stdout


def written(path, data: bytes, mode: int = 0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


def openssh(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def test_openssh_and_pem_are_the_same_key(tmp_path):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ours = [
        SigningKey.read(written(tmp_path / name, data))
        for name, data in (("pem", pem), ("ssh", openssh(key)))
    ]
    assert ours[0].public == ours[1].public
    made = [one.sign(b"words", purpose="test", run="7") for one in ours]
    assert made[0] == made[1] and len(made[0]) == 64
    public = key.public_key()
    lines = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " a comment"
    pem_public = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert PublicKey.parse(lines, "x") == PublicKey.parse(pem_public, "x") == ours[0].public
    assert PublicKey.parse(ours[0].public.text, "x") == ours[0].public


@needs_ssh_keygen
def test_what_ssh_keygen_makes_is_read_and_its_fingerprint_is_ours(tmp_path):
    path = tmp_path / "signing.key"
    keygen("-q", "-t", "ed25519", "-N", "", "-f", path)
    key = SigningKey.read(path)
    assert PublicKey.read(tmp_path / "signing.key.pub") == key.public
    assert key.public.fingerprint in keygen("-l", "-f", path).split()


def test_keys_unfit_for_use_are_refused_with_a_way_out(tmp_path):
    key = Ed25519PrivateKey.generate()
    good, other = openssh(key), ec.generate_private_key(ec.SECP384R1())
    locked_pem = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    cases = {
        "absent": (None, "cannot be read: No such file.*certs.sh node SITE"),
        "group": (written(tmp_path / "group", good, 0o640), "read by others. chmod 600"),
        "all": (written(tmp_path / "all", good, 0o604), "read by others. chmod 600"),
        "writable": (written(tmp_path / "writable", good, 0o620), "chmod 600"),
        "curve": (written(tmp_path / "curve", openssh(other)), "must be an Ed25519 key"),
        "locked-pem": (written(tmp_path / "locked-pem", locked_pem), "passphrase"),
        "cut": (written(tmp_path / "cut", good[:-80]), "is no private key"),
        "words": (written(tmp_path / "words", b"words"), "is no private key"),
        "empty": (written(tmp_path / "empty", b""), "is no private key"),
        "long": (written(tmp_path / "long", b"x" * 20_000), "too long"),
    }
    for name, (path, said) in cases.items():
        with pytest.raises(ConfigError, match=f"(?s){said}") as refused:
            SigningKey.read(path or tmp_path / name)
        assert str(tmp_path) in str(refused.value), name
        assert str(tmp_path) not in refused.value.outside, name


@needs_ssh_keygen
def test_an_openssh_key_with_a_passphrase_says_how_to_remove_it(tmp_path):
    path = tmp_path / "signing.key"
    keygen("-q", "-t", "ed25519", "-N", "secret", "-f", path)
    with pytest.raises(ConfigError, match=f"passphrase.*Remove it: ssh-keygen -p -N '' -f {path}"):
        SigningKey.read(path)
    keygen("-q", "-p", "-P", "secret", "-N", "", "-f", path)
    assert SigningKey.read(path).public == PublicKey.read(tmp_path / "signing.key.pub")


def test_a_private_key_is_no_public_one(tmp_path):
    path = written(tmp_path / "k", openssh(Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="is a private key, which no other site may see"):
        PublicKey.read(path)
    for text in ("", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa AAAA", "-----BEGIN", "\x00"):
        with pytest.raises(ConfigError, match="public key of 'north' must be Ed25519"):
            PublicKey.parse(text, "'north'")
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(ConfigError, match="must be Ed25519"):
        PublicKey.parse(curve.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(), "x")


def test_a_signature_is_for_one_purpose_of_one_run():
    key, other = signing_key(), signing_key()
    made = key.sign(b"data", purpose="advert", run="12")
    holds = key.public.holds
    assert holds(made, b"data", purpose="advert", run="12")
    assert not holds(made, b"date", purpose="advert", run="12")
    assert not holds(made, b"data", purpose="survivors", run="12")
    assert not holds(made, b"data", purpose="advert", run="13")
    # Parts cannot be shifted into one another.
    assert not holds(made, b"2data", purpose="advert", run="1")
    assert not holds(made, b"data", purpose="advert1", run="2")
    assert not other.public.holds(made, b"data", purpose="advert", run="12")
    for wrong in (b"", made[:-1], made + b"\0", bytes(64)):
        assert not holds(wrong, b"data", purpose="advert", run="12")


@given(st.binary(max_size=80))
def test_no_bytes_are_a_key_file_by_chance_or_raise_anything_else(tmp_path_factory, data):
    path = written(tmp_path_factory.mktemp("fuzz") / "key", data)
    with pytest.raises(ConfigError):
        SigningKey.read(path)
    with pytest.raises(ConfigError):
        PublicKey.read(path)
