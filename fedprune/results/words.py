"""What a method says of itself in reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A method in words for people.

    Attributes
    ----------
    label : str
        What people call it.
    does : str
        What clients send and the server makes of it, in a clause.
    sends : str
        What a client sends of its texts; completes "each client sends ...".
    tells : str
        What can be read from that, in whole sentences.
    """

    label: str
    does: str
    sends: str
    tells: str
