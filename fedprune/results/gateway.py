"""What the gateway in front of a SuperLink has refused, read from the file that it keeps."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from fedprune.errors import ConfigError, FedpruneError
from fedprune.results.run_status import moment

_VERSION = 1
_KIND = re.compile(r"[a-z][a-z-]{0,31}")


@dataclass(frozen=True)
class GatewayTally:
    """Refused requests.

    Attributes
    ----------
    since : str
        When counting began; UTC, ISO 8601.
    refused : dict of str to int
        Kind -> requests, for example "control": 3 for the interface that starts runs.
    """

    since: str
    refused: dict[str, int]


def read_gateway(path: Path) -> GatewayTally:
    """Return a gateway's tally.

    Raises
    ------
    ConfigError
        If there is no such file.
    FedpruneError
        If it cannot be read or is not a tally of this version.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--gateway takes the file of a gateway's tally, '{path}' is not there. A gateway "
            "writes it once it has started: `refused.json` in its state folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FedpruneError(f"'{path}' cannot be read: {type(error).__name__}.") from None
    try:
        if plain["version"] != _VERSION:
            raise ValueError("version")
        found = GatewayTally(plain["since"], dict(plain["refused"]))
        moment(found.since)
        kinds = all(map(_KIND.fullmatch, found.refused))
        if not kinds or not all(type(count) is int for count in found.refused.values()):
            raise ValueError("refused")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FedpruneError(
            f"'{path}' is not a gateway's tally of version {_VERSION}: it has `version`, `since` "
            "and `refused` with a count for each kind."
        ) from None
    return found
