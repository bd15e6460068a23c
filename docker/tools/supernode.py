"""Start this site's SuperNode from the settings in the environment.

SERVER (host:port of the gateway), SITE, PARTITION_ID, NUM_PARTITIONS, NODE_CONFIG with further
settings in Flower's notation, and ALLOWED_APPS with the SHA-256 of apps that may run here beside
the one in this image.
"""

import os
import re
import sys
from collections.abc import Mapping

_SERVER = re.compile(r"\S+:\d{1,5}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NUMBER = re.compile(r"\d{1,6}")
# The keys of Flower's notation; what stands in quotes may look like one.
_KEY = re.compile(r"""(?:"[^"]*"|'[^']*')|(?<!\S)([A-Za-z][A-Za-z0-9-]*)=""")


def settings(environment: Mapping[str, str]) -> str:
    """Return Flower's node config.

    Raises
    ------
    SystemExit
        A setting is missing or wrong.
    """
    site = _checked(environment, "SITE", _SITE, "letters, digits, '.', '_' and '-'")
    partition = _checked(environment, "PARTITION_ID", _NUMBER, "a number, another for each node")
    words = [f'site="{site}"', f"partition-id={partition}"]
    if environment.get("NUM_PARTITIONS"):
        total = _checked(environment, "NUM_PARTITIONS", _NUMBER, "the number of nodes")
        words.append(f"num-partitions={total}")
    own = environment.get("NODE_CONFIG", "").strip()
    keys = set(_KEY.findall(own))
    for name, key in (("SITE", "site"), ("PARTITION_ID", "partition-id")):
        if key in keys:
            raise SystemExit(f"`{key}` must not be in NODE_CONFIG: say {name} in the node's .env.")
    if "num-partitions" in keys and environment.get("NUM_PARTITIONS"):
        raise SystemExit("`num-partitions` is in NODE_CONFIG and in NUM_PARTITIONS: say it once.")
    if "data-path" not in keys:
        words.append('data-path="/data"')
    return " ".join(filter(None, [*words, own]))


def command(environment: Mapping[str, str]) -> list[str]:
    """Return the command that runs the SuperNode.

    Raises
    ------
    SystemExit
        A setting is missing or wrong.
    """
    server = _checked(environment, "SERVER", _SERVER, "host:port of the server's gateway")
    words = ["fedprune", "supernode"]
    for digest in environment.get("ALLOWED_APPS", "").split():
        words += ["--app", digest]
    words += ["--", "--superlink", server]
    words += ["--root-certificates", "/run/secrets/ca.crt"]
    words += ["--auth-supernode-private-key", "/run/secrets/node.key"]
    # `runtime` is this container in the network that it shares with the executor alone.
    words += ["--isolation", "process", "--host", "runtime", "--port", "9094"]
    words += ["--superexec-auth-secret-file", "/run/secrets/superexec.secret"]
    return [*words, "--node-config", settings(environment)]


def _checked(
    environment: Mapping[str, str], name: str, pattern: re.Pattern[str], expected: str
) -> str:
    value = environment.get(name, "")
    if not pattern.fullmatch(value):
        raise SystemExit(f"`{name}` must be {expected}, got '{value}'. Set it in the node's .env.")
    return value


if __name__ == "__main__":
    WORDS = command(os.environ)
    sys.stdout.flush()
    os.execvp(WORDS[0], WORDS)
