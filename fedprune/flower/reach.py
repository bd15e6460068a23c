"""Why a SuperLink cannot be reached, as far as its port and this environment tell.

Flower says "unavailable", or tries again without a word, whether nobody listens, the port speaks
TLS and this side does not, a certificate is not the authority's, or a proxy stands between.
Without it: the operator of a site guesses.
"""

import socket
import ssl
from collections.abc import MutableMapping
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_SECONDS = 3.0


def bypass_proxies_here(environment: MutableMapping[str, str]) -> None:
    """Let nothing that processes with this environment ask of this machine go through a proxy."""
    for key in ("NO_PROXY", "no_proxy"):
        named = [part.strip() for part in environment.get(key, "").split(",") if part.strip()]
        every = "*" if "*" in named else ",".join(dict.fromkeys([*named, *LOOPBACK]))
        environment[key] = every


def proxy_of(host: str, tls: bool) -> tuple[str, str] | None:
    """Return the variable that names a host's proxy and the proxy, None if there is none."""
    if proxy_bypass(host):
        return None
    found = getproxies()
    for scheme in ("https" if tls else "http", "all"):
        if scheme in found:
            where, mark, rest = found[scheme].rpartition("://")
            # Without the user and password in it.
            return f"{scheme.upper()}_PROXY", f"{where}{mark}{rest.rpartition('@')[2]}"
    return None


def trouble(address: str, tls: bool, authority: Path | None = None) -> str:
    """Return why a SuperLink cannot be reached and what to do; "" if nothing is found.

    `address`: ``host:port``.
    """
    host, port = split(address)
    if not host or port is None:
        return f"'{address}' is no host:port."
    proxy = proxy_of(host, tls)
    if proxy is not None:
        return (
            f"Requests to {host} go through the proxy {proxy[1]} ({proxy[0]} in the environment). "
            f"If that is not meant, set NO_PROXY={host}."
        )
    try:
        with socket.create_connection((host, port), _SECONDS):
            pass
    except socket.gaierror:
        return f"Nobody knows the name '{host}' here. Look at the address {address}."
    except OSError as error:
        said = error.strerror or "it does not answer"
        return f"Nobody can be reached at {address}: {said}. Is the SuperLink running there?"
    speaks = _speaks_tls(host, port)
    if speaks and not tls:
        return (
            f"{address} speaks TLS, and this side does not: name the authority's certificate "
            "(`root-certificates` of the connection in Flower's config.toml, or "
            "`--root-certificates`) in place of `insecure`."
        )
    if tls and not speaks:
        return (
            f"{address} does not speak TLS, and this side does: start the SuperLink with "
            "certificates, or look at the port."
        )
    return _refused(host, port, authority) if tls else ""


def split(address: str) -> tuple[str, int | None]:
    """Return host and port, None where there is no port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdigit() else None


def _speaks_tls(host: str, port: int) -> bool:
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as plain,
            anybody.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError:  # what answers is no handshake, or nothing does
        return False


def _refused(host: str, port: int, authority: Path | None) -> str:
    """Return why a certificate is not trusted, "" if it is."""
    try:
        trust = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        return f"The certificate in '{authority}' cannot be read: {error}."
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as plain,
            trust.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"The certificate of {host}:{port} is not trusted: {error.verify_message} Give the "
            "authority's own (ca.crt), and a name that the server's certificate has."
        )
    except OSError:
        return ""
