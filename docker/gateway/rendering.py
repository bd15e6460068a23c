"""The gateway's settings, from environment variables, and nginx's configuration made of them."""

import grp
import os
import pwd
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

CHUNK_BYTES = 5 * 2**20
"""Flower's largest part of an array; whatever is longer is sent in several requests."""

_SMALL = 16 * 2**10
# A part of an array comes with 151 bytes of names and lengths; the rest is room for longer names.
_OBJECT = CHUNK_BYTES + 64 * 2**10
# 69 bytes for each object of a message: enough for 30,000, which are 150 GB of arrays.
_LIST = 2 * 2**20

FLEET_ROUTES: Mapping[str, int] = {
    "activate-node": _SMALL,
    "deactivate-node": _SMALL,
    "send-node-heartbeat": _SMALL,
    "pull-messages": _SMALL,
    "push-messages": _LIST,
    "get-run": _SMALL,
    "get-fab": _SMALL,
    "push-object": _OBJECT,
    "pull-object": _SMALL,
    "confirm-message-received": _SMALL,
}
"""What a registered SuperNode asks of the Fleet API, and the largest body in bytes."""

REFUSED_ROUTES = ("register-node", "unregister-node")
"""Fleet routes for nodes without a key, which register themselves; here keys are registered."""

HEADERS = (
    "Accept",
    "Content-Type",
    "flwr-component-name",
    "flwr-package-name",
    "flwr-package-version",
    "flwr-public-key",
    "flwr-signature",
    "flwr-timestamp",
)
"""What the SuperLink gets of a request's headers."""

# Of control groups, version 2 and version 1; in both the file may say that there is no limit.
_MEMORY = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_MOST_UPLOADS = 512
_PLACE = re.compile(r"@([A-Z_]+)@")
_SAFE = re.compile(r"[A-Za-z0-9_./:\[\]-]+")


class SettingError(Exception):
    """An environment variable is wrong."""


@dataclass(frozen=True)
class Settings:
    """What an operator may set; every name below is a variable ``GATEWAY_NAME``.

    Attributes
    ----------
    listen : str
        Address and port that nodes reach.
    superlink : str
        Name and port of the SuperLink; its certificate must hold for the name.
    certificate, key, ca : str
        Files: the server's certificate with its chain, its key, the authority that signed the
        SuperLink's certificate.
    state : str
        Folder of ``refused.json``.
    rate, burst : int
        Requests a second of one address in the long run, and how many may wait beyond that.
    requests, uploads : int
        Requests and, among them, bodies of one address at the same time.
    all_uploads : int
        Bodies of all addresses at the same time, each of which takes up to 5 MiB of memory; 0
        is as many as two thirds of the container's memory hold.
    header_seconds, body_seconds : int
        How long a request's head may take, and a pause within its body.
    connections : int
        Of one worker, to both sides.
    workers : int
        Processes of nginx.
    summary_seconds : int
        Pause between two lines that sum up what was refused.
    """

    listen: str = "0.0.0.0:8443"
    superlink: str = "superlink:8000"
    certificate: str = "/run/secrets/server.pem"
    key: str = "/run/secrets/server.key"
    ca: str = "/run/secrets/ca.crt"
    state: str = "/var/lib/gateway"
    rate: int = 200
    burst: int = 1000
    requests: int = 256
    uploads: int = 64
    all_uploads: int = 0
    header_seconds: int = 15
    body_seconds: int = 30
    connections: int = 4096
    workers: int = 2
    summary_seconds: int = 600

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables that are set.

        Raises
        ------
        SettingError
            If one is not a positive whole number, a path or an address, as it should be.
        """
        values: dict[str, str | int] = {}
        for name, default in vars(cls()).items():
            text = environment.get(f"GATEWAY_{name.upper()}", "")
            if not text:
                continue
            values[name] = _number(name, text) if isinstance(default, int) else _word(name, text)
        return cls(**values)  # type: ignore[arg-type]

    @property
    def superlink_host(self) -> str:
        """The SuperLink's name, without its port."""
        return self.superlink.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port that nodes reach."""
        return int(self.listen.rpartition(":")[2])


def render(template: str, settings: Settings, superlink: str, run: Path) -> str:
    """Fill in nginx's configuration.

    Parameters
    ----------
    template : str
        Text of ``nginx.conf``.
    settings : Settings
        What to fill in.
    superlink : str
        The SuperLink's address and port as numbers.
    run : Path
        Folder for nginx's own files.
    """
    uploads = settings.all_uploads or _uploads_in(_memory())
    settings = replace(settings, all_uploads=uploads)
    values = {name.upper(): str(value) for name, value in vars(settings).items()}
    values |= {
        "SUPERLINK": superlink,
        "SUPERLINK_NAME": settings.superlink_host,
        "RUN": str(run),
        "USER": _user(),
        # So many pass at once; beyond them each waits for its turn, and beyond `burst` is refused.
        "FREE": str(settings.burst * 2 // 5),
        "ALLOWED": "\n".join(f'        "{key}" 1;' for key in allowed()),
        "HEADERS": "\n".join(_header(name) for name in HEADERS),
        "ROUTES": "\n".join(_route(settings, *route) for route in FLEET_ROUTES.items()),
    }
    return _PLACE.sub(lambda place: values[place[1]], template)


def allowed() -> list[str]:
    """Return the requests that get through: method and target."""
    fleet = [f"POST /v1/fleet/{name}" for name in FLEET_ROUTES]
    return [*fleet, "GET /health", "HEAD /health"]


def _route(settings: Settings, name: str, size: int) -> str:
    lines = [
        'if ($allowed = "") { return 403 $nothing; }',
        'if ($signed = "") { return 401 $nothing; }',
        f"proxy_pass https://superlink/v1/fleet/{name};",
    ]
    if size > _SMALL:
        lines += [
            f"client_max_body_size {size};",
            f"client_body_buffer_size {size};",
            f"limit_conn requests {settings.requests};",
            f"limit_conn uploads {settings.uploads};",
            f"limit_conn all_uploads {settings.all_uploads};",
        ]
    body = "\n".join(f"            {line}" for line in lines)
    return f"        location = /v1/fleet/{name} {{\n{body}\n        }}"


def _header(name: str) -> str:
    return f"    proxy_set_header {name} $http_{name.lower().replace('-', '_')};"


def _memory() -> int:
    """Return the container's memory in bytes, or the machine's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [machine]
    for path in _MEMORY:
        with suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def _uploads_in(memory: int) -> int:
    return max(8, min(memory * 2 // 3 // _OBJECT, _MOST_UPLOADS))


def _user() -> str:
    """Workers of a gateway that was started as root give that up."""
    if os.geteuid() != 0:
        return ""
    nobody = pwd.getpwnam("nobody")
    return f"user nobody {grp.getgrgid(nobody.pw_gid).gr_name};"


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000):
        raise SettingError(
            f"GATEWAY_{name.upper()} must be a whole number from 1 to 1000000, got {text!r}."
        )
    return int(text)


def _word(name: str, text: str) -> str:
    wanted = "letters, digits and _ . / : [ ] -"
    if not _SAFE.fullmatch(text):
        raise SettingError(f"GATEWAY_{name.upper()} may hold {wanted} only, got {text!r}.")
    if name in ("listen", "superlink") and not re.fullmatch(r".+:[0-9]{1,5}", text):
        raise SettingError(f"GATEWAY_{name.upper()} must be NAME:PORT, got {text!r}.")
    return text
