"""What a walk through a model may use."""

from dataclasses import dataclass

from fedprune.config import PrunerConfig


@dataclass(frozen=True)
class Limits:
    """What a walk may use.

    Parameters
    ----------
    batch_size : int
        Sequences that run through a block at a time. Where memory runs out it is halved; with 1 a
        sequence's results do not depend on what else is walked.
    hidden_memory_mb : int or None
        Hidden states beyond so many megabytes go to the disk; None takes a share of what is free.
    length_key : str
        The configuration key that sets the length of the sequences.
    """

    batch_size: int = 1
    hidden_memory_mb: int | None = None
    length_key: str = "pruner.seq_len"

    @classmethod
    def of(cls, config: PrunerConfig, length_key: str = "pruner.seq_len") -> "Limits":
        """Return what the configuration allows."""
        return cls(config.batch_size, config.hidden_memory_mb, length_key)

    @property
    def keys(self) -> tuple[str, ...]:
        """The configuration keys that help where memory runs out."""
        return "pruner.batch_size", self.length_key, "pruner.device"


DEFAULT = Limits()
"""One sequence at a time."""
