"""How one request ended."""

from dataclasses import dataclass, replace

from flwr.app import Message


@dataclass(frozen=True)
class Outcome:
    """The end of one request.

    Attributes
    ----------
    node_id : int
        Whom it was sent to.
    reply : Message or None
        The reply, if there is one to look at.
    problem : str
        Why there is none; "" if there is.
    bytes_down, bytes_up : int
        Serialised sizes of request and reply.
    seconds : float
        From handing over the request until the reply was in hand.
    crashed : bool
        Whether the process that worked on it died, while its node is well.
    lost : bool
        Whether its node, or its reply on the way, was lost.
    """

    node_id: int
    reply: Message | None
    problem: str
    bytes_down: int
    bytes_up: int
    seconds: float
    crashed: bool = False
    lost: bool = False

    def after(self, before: "Outcome | None") -> "Outcome":
        """Return this outcome with the bytes and seconds of one before it."""
        if before is None:
            return self
        return replace(
            self,
            bytes_down=before.bytes_down + self.bytes_down,
            bytes_up=before.bytes_up + self.bytes_up,
            seconds=before.seconds + self.seconds,
        )
