"""One text and whose it is: the unit that sources yield and partitions hand out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text with its natural owner.

    Parameters
    ----------
    text : str
        The text itself, never empty.
    group : str
        Natural owner: a package, a file, or the value of a column.
    key : str
        Stable id, unique within its source.
    """

    text: str
    group: str
    key: str
