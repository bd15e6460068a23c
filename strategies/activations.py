"""When nodes connected: one that did so anew has lost what it was working on."""

import time
from collections.abc import Callable

from flwr.serverapp import Grid

_FRESH_SECONDS = 1.0
_LOOK_SECONDS = 5.0


class Activations:
    """Knows when nodes connected, as Flower says it.

    Flower tells of a lost node only while it is away. One that restarts between two looks would
    never answer, and its request would wait for the time-out.

    Parameters
    ----------
    grid : Grid
        Knows the nodes. Flower's own, in a deployment and in a simulation, say when each
        connected; others say nothing, and nothing is noticed.
    clock : Callable
        Seconds from any origin.
    """

    def __init__(self, grid: Grid, clock: Callable[[], float] = time.monotonic) -> None:
        self._grid = grid
        self._clock = clock
        self._known: dict[int, str] = {}
        self._looked = -float("inf")

    def of(self, node_id: int) -> str:
        """Return when a node connected; "" if unknown."""
        self._look(_FRESH_SECONDS)
        return self._known.get(node_id, "")

    def renewed(self, node_id: int, then: str) -> bool:
        """Return whether a node that connected ``then`` has done so again."""
        self._look(_LOOK_SECONDS)
        return bool(then) and self._known.get(node_id, then) != then

    def _look(self, seconds: float) -> None:
        now = self._clock()
        if now - self._looked >= seconds:
            self._looked = now
            nodes = self._grid.get_nodes()
            self._known = {node.node_id: node.last_activated_at for node in nodes}
