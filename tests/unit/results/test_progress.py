import pytest

from fedprune.results.progress import LABELS, Pace, Progress
from fedprune.results.run_status import Status
from fedprune.results.text import duration_text, size_text


def test_the_line_tells_phase_steps_and_details():
    assert Progress("prune", 3, 6, ("block 3/6", "1.2 MB up")).line() == (
        "fedprune: pruning 3/6 · block 3/6 · 1.2 MB up"
    )
    assert Progress("done", 1, 1).line() == "fedprune: done 1/1"


def test_a_status_begins_with_a_phase_that_has_words():
    assert Status("").phase in LABELS


def test_share():
    assert (Progress("prune", 3, 4).share, Progress("export", 0, 0).share) == (0.75, 0.0)


def told(*steps):
    """Return the shares that are worth a line when each is reached at its second."""
    now = [0.0]
    pace = Pace(lambda: now[0])
    found = []
    for second, share in steps:
        now[0] = second
        if pace.due(share):
            found.append(share)
    return found


def test_ten_thousand_answers_are_a_hundred_lines():
    found = told(*((0.0, number / 10_000) for number in range(10_001)))
    assert len(found) == 101
    assert found[0] == 0.0 and found[-1] == 1.0


def test_a_slow_run_is_told_of_every_quarter_of_a_minute():
    assert told((0, 0.0), (14, 0.001), (15, 0.002), (16, 0.003), (31, 0.003)) == [0.0, 0.002, 0.003]


def test_the_end_is_told_once():
    assert told((0, 0.0), (0, 0.995), (0, 0.999), (0, 1.0), (0, 1.0)) == [0.0, 0.995, 1.0]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5_000_000_000, "5.0 GB"),
        (7_000_000_000_000, "7.0 TB"),
    ],
)
def test_sizes(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (99.4, "99 s"),
        (99.5, "2 min"),
        (5969, "99 min"),
        (5970, "1.7 h"),
        (1e6, "277.8 h"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text
