import pytest

from strategies import state
from strategies.state import Timings


def test_seconds_add_up_over_spans_and_processes(monkeypatch):
    now = 0.0
    monkeypatch.setattr(state.time, "monotonic", lambda: now)
    found = Timings({"prune": 10.0, "load": 1.0})
    with found.measure("prune"):
        now += 2.0
        with found.measure("save"):
            now += 1.0
        assert found.seconds == {"prune": 13.0, "load": 1.0, "save": 1.0}
    now += 5.0
    with pytest.raises(OSError), found.measure("save"):
        now += 0.5
        raise OSError
    assert found.seconds == {"prune": 13.0, "load": 1.0, "save": 1.5}
    assert Timings().seconds == {}
