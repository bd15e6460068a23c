"""Who this site is to others: the key that it signs with, and the roster of those it trusts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from client_app.node_config import NodeConfig
from fedprune.config.suggest import show
from fedprune.errors import ConfigError
from fedprune.privacy.roster import Roster
from fedprune.privacy.signing import SigningKey


@dataclass(frozen=True)
class Identity:
    """A site's key and roster."""

    key: SigningKey | None  # what it signs with; None where its operator named none
    # the sites whose keys it trusts, verified; None where its operator named none, then it can
    # trust no key of another site
    roster: Roster | None

    @classmethod
    def of(cls, settings: NodeConfig) -> Self:
        """Read what a node's configuration names.

        Raises ConfigError if a file is unfit, the roster does not hold, this site is not in it or
        is there under another name, or has not signed it.
        """
        key = None
        if settings.signing_key is not None:
            key = SigningKey.read(Path(settings.signing_key).expanduser())
        if settings.roster is None or key is None:
            return cls(key, None)
        roster = Roster.read(Path(settings.roster).expanduser())
        roster.verify(key.public)
        name = roster.site_of(key.public)
        if settings.site and settings.site != name:
            raise ConfigError(
                f"`site` in the node's --node-config is {show(settings.site)}, the roster calls "
                f"this site's key {show(name)}. Give both the same name."
            )
        return cls(key, roster)
