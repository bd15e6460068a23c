"""Which node this is: its partition, its operator's settings, its scratch folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fedprune.errors import ConfigError
from fedprune.home import home


@dataclass(frozen=True)
class Seat:
    """A node's identity in one run.

    Attributes
    ----------
    partition_id : int
        Which share of the data it holds; also what its seeds derive from.
    num_partitions : int
        Of how many; 0 if nobody said.
    site : str
        The name its operator gave it, or "".
    settings : Mapping
        Everything in its ``--node-config``, for example ``data-path`` and ``model-path``.
    scratch : Path
        Its folder for this run; removed when the run is over for this node.
    """

    partition_id: int
    num_partitions: int
    site: str
    settings: Mapping[str, str | int | float | bool]
    scratch: Path

    @classmethod
    def of(cls, context: Context) -> "Seat":
        """Read the node's configuration.

        Raises
        ------
        ConfigError
            If ``partition-id`` is missing or not a whole number of at least 0.
        """
        settings = dict(context.node_config)
        partition = settings.get("partition-id")
        if type(partition) is not int or partition < 0:
            raise ConfigError(
                "`partition-id` in the node's --node-config must be a whole number of at least 0, "
                f"got {partition!r}. Start the SuperNode with --node-config 'partition-id=0', "
                "a different number for each node."
            )
        total = settings.get("num-partitions", 0)
        folder = home() / "nodes" / f"run-{context.run_id}" / f"partition-{partition:05d}"
        return cls(
            partition_id=partition,
            num_partitions=total if type(total) is int else 0,
            site=str(settings.get("site", "")),
            settings=settings,
            scratch=folder,
        )
