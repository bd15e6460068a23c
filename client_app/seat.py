"""Which node this is: its partition, its operator's settings, its scratch folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message

from client_app.settings import Settings
from fedprune.disk import home
from fedprune.errors import ReplyRefusedError
from fedprune.logs import note

_JOB = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Seat:
    """A node's identity in one job.

    Attributes
    ----------
    settings : Settings
        What its operator says in ``--node-config``.
    scratch : Path
        Its folder for this job; removed when the server says that the job is over.
    """

    settings: Settings
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
        settings = Settings.read(dict(context.node_config))
        site, partition = settings.site, settings.partition_id
        note(node=f"'{site}' (partition {partition})" if site else f"partition {partition}")
        folder = home() / "nodes" / f"job-{job}" / f"partition-{partition:05d}"
        return cls(settings, folder)

    @property
    def site(self) -> str:
        """The name its operator gave it, or ""."""
        return self.settings.site

    @property
    def partition_id(self) -> int:
        """Which share of the data it holds."""
        return self.settings.partition_id

    @property
    def num_partitions(self) -> int:
        """Of how many; 0 if nobody said."""
        return self.settings.num_partitions
