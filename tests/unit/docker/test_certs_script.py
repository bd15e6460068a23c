"""`docker/certs.sh` as it is typed: what it makes, and that it overwrites nothing."""

import ipaddress
import os
import shutil
import stat
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from fedprune.privacy.signing import PublicKey, SigningKey
from tests.support.containers import DOCKER
from tests.support.signing import signed_roster

APP = 49999
OF_A_SITE = ("node.key", "node.key.pub", "signing.key", "signing.key.pub", "superexec.secret")
pytestmark = pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("ssh-keygen")),
    reason="openssl or ssh-keygen is not installed",
)


def certs(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"CERTS_DIR": str(folder)} | environment
    command = [str(DOCKER / "certs.sh"), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path: Path) -> set[str]:
    found = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = found.get_values_for_type(x509.IPAddress)
    return {*found.get_values_for_type(x509.DNSName), *map(str, addresses)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "certs"
    for words in (("server", "fed.example.org", "192.0.2.7", "2001:db8::7"), ("node", "a", "b-2")):
        done = certs(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def test_makes_what_the_compose_files_mount(made):
    wanted = {"ca.crt", "ca/ca.key", "keys/a.pub", "keys/b-2.pub"}
    wanted |= {f"server/{name}" for name in ("server.pem", "server.key", "superexec.secret")}
    for site in ("a", "b-2"):
        files = (*OF_A_SITE, "ca.crt")
        wanted |= {f"nodes/{site}/{name}" for name in files}
    assert set(contents(made)) == wanted


def test_servers_certificate_names_the_server_and_its_containers(made):
    server = certificate(made / "server/server.pem")
    server.verify_directly_issued_by(certificate(made / "ca.crt"))
    inside = {"superlink", "gateway", "localhost", "127.0.0.1"}
    given = {"fed.example.org", "192.0.2.7", str(ipaddress.ip_address("2001:db8::7"))}
    assert names(made / "server/server.pem") == inside | given
    constraints = server.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.value.ca is False
    key = load_pem_private_key((made / "server/server.key").read_bytes(), None)
    assert key.public_key() == server.public_key()


def test_keys_are_what_flower_loads(made):
    given = Namespace(
        auth_supernode_private_key=str(made / "nodes/a/node.key"),
        auth_supernode_public_key=None,
        insecure=False,
        superlink="here:1",
        root_certificates=str(made / "ca.crt"),
    )
    private, public = _try_setup_client_authentication(given)
    assert isinstance(private.curve, ec.SECP384R1)
    assert try_load_public_key(made / "keys/a.pub") == public_key_to_bytes(public)
    assert (made / "keys/a.pub").read_bytes() != (made / "keys/b-2.pub").read_bytes()


def test_signing_keys_are_what_a_roster_lists_and_signs_with(made):
    keys = {site: SigningKey.read(made / f"nodes/{site}/signing.key") for site in ("a", "b-2")}
    listed = {site: PublicKey.read(made / f"nodes/{site}/signing.key.pub") for site in keys}
    assert listed == {site: key.public for site, key in keys.items()}
    assert len(set(listed.values())) == 2
    signed_roster(keys).verify(listed["a"])


def test_secrets_are_long_and_each_its_own(made):
    secrets = [path.read_text() for path in made.rglob("superexec.secret")]
    assert len(set(secrets)) == 3 and all(len(secret) == 64 for secret in secrets)


def test_nobody_but_the_containers_reads_private_files(made):
    for path in made.rglob("*"):
        mode, private = path.stat().st_mode, path.suffix in (".key", ".secret")
        if private:
            assert stat.S_IMODE(mode) & 0o077 == 0, path
            if os.geteuid() == 0 and path.name != "ca.key":
                assert (path.stat().st_uid, path.stat().st_gid) == (APP, APP)
    for folder in (made, made / "ca", made / "nodes/a", made / "server"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # The registrar lists this one, as another user.
    assert stat.S_IMODE((made / "keys").stat().st_mode) == 0o755
    assert (made / "ca/ca.key").stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_who_is_not_root_is_told_what_to_do(tmp_path):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:-2]:  # all but /tmp and /
        parent.chmod(0o755)
    script = tmp_path / "certs.sh"
    script.write_bytes((DOCKER / "certs.sh").read_bytes())
    done = subprocess.run(
        ["bash", str(script), "server", "here"],
        env={"PATH": os.environ["PATH"], "CERTS_DIR": str(tmp_path / "certs")},
        user=65534,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if f"sudo chown {APP}:{APP}" in line]
    assert len(told) == 2 and "server.key" in told[0] and "superexec.secret" in told[1]


def test_overwrites_nothing_and_goes_on(made):
    before = contents(made)
    again = certs(made, "server", "other.example.org")
    assert again.returncode == 0 and again.stdout.count("exists: ") == 3
    more = certs(made, "node", "a", "c")
    assert more.returncode == 0
    assert more.stdout.count("exists: ") == 5 and more.stdout.count("made: ") == 4
    after = contents(made)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[-2] for name in set(after) - set(before)} == {"c", "keys"}


def test_a_site_can_make_its_own_key_without_the_authority(tmp_path):
    done = certs(tmp_path / "certs", "node", "alone")
    assert done.returncode == 0 and "put the server's ca.crt" in done.stdout
    assert set(contents(tmp_path / "certs")) == {
        "keys/alone.pub",
        *(f"nodes/alone/{name}" for name in OF_A_SITE),
    }


def test_shows_the_last_days_and_warns(tmp_path):
    folder = tmp_path / "certs"
    assert certs(folder, "server", "here", DAYS="20").returncode == 0
    shown = certs(folder, "show")
    assert shown.returncode == 1
    assert "less than 30 days left" in shown.stdout and "EXPIRED" not in shown.stdout
    end = certificate(folder / "server/server.pem").not_valid_after_utc
    assert f"{end:%b} {end.day:2d} {end:%H:%M:%S %Y} GMT" in shown.stdout
    assert "(3649 days)" in shown.stdout or "(3650 days)" in shown.stdout
    assert certs(folder, "renew").returncode == 0
    fine = certs(folder, "show")
    # The old one is not shown: it is not in use.
    assert fine.returncode == 0 and "WARNING" not in fine.stdout


def test_renews_for_the_same_names_or_others_and_keeps_the_old(tmp_path):
    folder = tmp_path / "certs"
    assert certs(folder, "server", "here.example.org").returncode == 0
    server = folder / "server/server.pem"
    before, wanted = contents(folder), names(server)
    done = certs(folder, "renew")
    assert done.returncode == 0, done.stderr
    assert names(server) == wanted
    (old,) = folder.glob("server/server.pem.*")
    assert old.read_bytes() == before["server/server.pem"] != server.read_bytes()
    same = {name for name, text in contents(folder).items() if before.get(name) == text}
    assert same == set(before) - {"server/server.pem"}
    assert certificate(server).serial_number != certificate(old).serial_number
    old.rename(old.with_name("kept"))
    assert certs(folder, "renew", "there.example.org").returncode == 0
    assert "there.example.org" in names(server) and "here.example.org" not in names(server)


def test_authority_that_lost_its_certificate_keeps_its_key(tmp_path):
    folder = tmp_path / "certs"
    assert certs(folder, "server", "here").returncode == 0
    (folder / "ca.crt").unlink()
    key = (folder / "ca/ca.key").read_bytes()
    done = certs(folder, "server", "here")
    assert done.returncode == 1 and "put ca.crt back" in done.stderr
    assert (folder / "ca/ca.key").read_bytes() == key and not (folder / "ca.crt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["server"], "by which names"),
        (["server", "two words"], "neither a host name nor an address"),
        (["server", "here.example.org:8443"], "without a port"),
        (["node"], "name the sites"),
        (["node", "../up"], "a site's name has"),
        (["renew"], "nothing to renew|to renew"),
        (["show"], "no certificates"),
    ],
)
def test_says_what_is_wrong(tmp_path, words, said):
    done = certs(tmp_path / "certs", *words)
    assert done.returncode == 1
    assert any(part in done.stderr for part in said.split("|"))
    assert not contents(tmp_path)
