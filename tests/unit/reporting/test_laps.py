import pytest

from fedprune.reporting import laps
from fedprune.reporting.laps import Laps


def test_seconds_add_up_over_laps_and_processes(monkeypatch):
    now = 0.0
    monkeypatch.setattr(laps.time, "monotonic", lambda: now)
    found = Laps({"prune": 10.0, "load": 1.0})
    with found.lap("prune"):
        now += 2.0
        with found.lap("save"):
            now += 1.0
        assert found.seconds == {"prune": 13.0, "load": 1.0, "save": 1.0}
    now += 5.0
    with pytest.raises(OSError), found.lap("save"):
        now += 0.5
        raise OSError
    assert found.seconds == {"prune": 13.0, "load": 1.0, "save": 1.5}
    assert Laps().seconds == {}
