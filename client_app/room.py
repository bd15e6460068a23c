"""How much of this node's disk a server's deliveries may take: what its model explains, no more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from client_app.scratch import Scratch
from fedprune.errors import ReplyRefusedError
from fedprune.records import FINAL
from fedprune.wire.changes import most_update_bytes

_JOBS = 4  # whose deliveries may lie here at once: of runs under way, or that were killed


@dataclass(frozen=True)
class Room:
    """The most that can come of one model.

    Attributes
    ----------
    block, model : int
        Bytes of what became of its largest block, and of all blocks.
    """

    block: int
    model: int

    @classmethod
    def of(cls, shapes: Sequence[Mapping[str, tuple[int, int]]]) -> Self:
        """Return the room for a model; for each of its blocks, linear -> (d_out, d_in)."""
        sizes = [most_update_bytes(block) for block in shapes]
        return cls(max(sizes), sum(sizes))

    def check(self, scratch: Scratch, name: str, stop: int) -> None:
        """Make sure that a parcel may be kept.

        Parameters
        ----------
        scratch : Scratch
            This node's folder for the job.
        name : str
            What the parcel is of.
        stop : int
            How many bytes there will be of it.

        Raises
        ------
        ReplyRefusedError
            If these, all deliveries of this job, or those of all jobs are too many.
        """
        path = scratch.inbox(name)
        job = stop + sum(map(_size, set(path.parent.glob("inbox-*.bin")) - {path}))
        jobs = path.parents[2].glob(f"*/{path.parent.name}/inbox-*.bin")
        everything = job + sum(_size(found) for found in jobs if found.parent != path.parent)
        most = self.model if name == FINAL else self.block
        for what, found, limit in (
            (f"of '{name}'", stop, most),
            ("of one job", job, self.model + self.block),
            ("of all jobs", everything, _JOBS * (self.model + self.block)),
        ):
            if found > limit:
                raise ReplyRefusedError(
                    f"deliveries {what} may take {limit} bytes on this node, which is what its "
                    f"model explains; with this one they would take {found}. What killed runs left "
                    "is deleted after a week, or by hand from FEDPRUNE_HOME/nodes."
                )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process has just deleted it
        return 0
