"""Every error that a user can meet; each message names the key, the value and the way out."""

from collections.abc import Sequence


class FedpruneError(Exception):
    """Base of all errors raised on purpose, so that a caller can tell them from bugs.

    `message`: for whoever reads this machine's log. `outside`: what another machine may be told in
    its place, where the message names private files.
    """

    def __init__(self, message: str = "", *, outside: str | None = None) -> None:
        super().__init__(message)
        self.outside = str(message) if outside is None else outside


class ConfigError(FedpruneError):
    """A configuration key or value is wrong; carries every problem found, one a line."""


class ModelError(FedpruneError):
    """A model cannot be loaded, pruned or exported."""


class DataError(FedpruneError):
    """Texts are missing, unreadable or too short."""


class WireError(FedpruneError):
    """Received bytes are not what their header or the model says they must be."""


class ReplyRefusedError(FedpruneError):
    """A node's reply is not used; the round goes on without it."""


class QuorumError(FedpruneError):
    """Fewer clients remain than `strategy.min_clients`."""


def listing(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
