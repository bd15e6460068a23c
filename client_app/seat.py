"""Which node this is: its partition, its operator's settings, its scratch folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message

from fedprune.errors import ConfigError, ReplyRefusedError
from fedprune.home import home

_JOB = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Seat:
    """A node's identity in one job.

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
        Its folder for this job; removed when the server says that the job is over.
    """

    partition_id: int
    num_partitions: int
    site: str
    settings: Mapping[str, str | int | float | bool]
    scratch: Path

    @classmethod
    def of(cls, message: Message, context: Context) -> "Seat":
        """Read the node's configuration, and the job that a message is of: its group.

        Flower's number of the run does not tell: a run that goes on after a kill has another.

        Raises
        ------
        ConfigError
            If ``partition-id`` is missing or not a whole number of at least 0.
        ReplyRefusedError
            If the message names no job.
        """
        job = message.metadata.group_id
        if not _JOB.fullmatch(job):
            raise ReplyRefusedError("a request's group must be its job, 32 hexadecimal digits.")
        settings = dict(context.node_config)
        partition = settings.get("partition-id")
        if type(partition) is not int or partition < 0:
            raise ConfigError(
                "`partition-id` in the node's --node-config must be a whole number of at least 0, "
                f"got {partition!r}. Start the SuperNode with --node-config 'partition-id=0', "
                "a different number for each node."
            )
        total = settings.get("num-partitions", 0)
        folder = home() / "nodes" / f"job-{job}" / f"partition-{partition:05d}"
        return cls(
            partition_id=partition,
            num_partitions=total if type(total) is int else 0,
            site=str(settings.get("site", "")),
            settings=settings,
            scratch=folder,
        )
