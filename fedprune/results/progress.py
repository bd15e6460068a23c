"""The words for the phases of a run, and the lines of log that tell how far it is."""

import time
from collections.abc import Callable
from dataclasses import dataclass

LABELS = {
    "load": "loading the model",
    "connect": "connecting",
    "handshake": "asking nodes who they are",
    "model": "sending the model to nodes",
    "keys": "exchanging keys for secure sums",
    "survey": "surveying",
    "deliver": "delivering pruned blocks",
    "prune": "pruning",
    "reconstruct": "fitting survivors",
    "local": "clients measure their own models",
    "federated": "clients measure their own texts",
    "evaluate": "evaluating",
    "export": "writing the model",
    "zero_shot": "zero-shot tasks and sizes",
    "done": "done",
}
"""What a person reads for each phase: in terminal and log, in `fedprune status`, on pages."""
_BETWEEN = " · "
_QUIET_SECONDS = 15.0


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    phase: str  # one of `LABELS`
    # done, total: steps finished and steps in this phase
    done: int
    total: int
    details: tuple[str, ...] = ()  # what is happening, for people; the most important first

    @property
    def share(self) -> float:
        """Share of the phase that is done, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def text(self) -> str:
        """The details in one line."""
        return _BETWEEN.join(self.details)

    def line(self) -> str:
        """Return the line to log."""
        return _BETWEEN.join(
            [f"fedprune: {LABELS[self.phase]} {self.done}/{self.total}", *self.details]
        )


class Pace:
    """Chooses which of many steps are worth a line of log.

    The first and the last are, and between them one for each percent and one for each quarter of
    a minute: a run of a thousand clients fills no log, a slow one does not seem dead.

    `clock`: seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None

    def due(self, share: float) -> bool:
        """Return whether to tell that this share of all steps is done."""
        now = self._clock()
        if self._last is not None:
            told, before = self._last
            same = int(100 * share) == int(100 * before)
            if same and now < told + _QUIET_SECONDS:
                return False
        self._last = (now, share)
        return True
