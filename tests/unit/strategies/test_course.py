"""What the rounds log of their course."""

import pytest

from fedprune.results.ledger import Entry, Ledger
from fedprune.results.progress import Progress
from fedprune.results.run_status import RunStatus
from strategies import progress
from strategies.progress import Course, counting, measuring, show


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines(monkeypatch):
    found = []

    def record(*parts):
        found.append(Progress(*parts))
        return found[-1]

    monkeypatch.setattr(progress, "Progress", record)
    return lambda: found


def test_block_clients_time_and_bytes(lines):
    clock, ledger = Clock(), Ledger()
    status, seen = RunStatus(), []
    course = Course(6, 1, ledger, status, clock)
    for start in (0, 3):
        report = course.pruning(range(start, start + 3), 1)
        report(0, 2)
        for answered in (1, 2):
            clock.now += 10
            ledger.add(Entry(1, "prune", "a", 500, 1000, 1.0))
            report(answered, 2)
            seen.append((status.now.blocks_done, status.now.answered, status.now.eta_seconds))
    assert [left is None for _, _, left in seen] == [False, False, False, True]
    assert [(done, answered) for done, answered, _ in seen] == [(1, 1), (3, 2), (4, 1), (6, 2)]
    assert (status.now.blocks_total, status.now.round, status.now.rounds) == (6, 1, 1)
    assert [(step.done, step.total, step.text) for step in lines()] == [
        (0, 6, "block 1-3/6 · clients 0/2 · 0 B up, 0 B down"),
        (1, 6, "block 1-3/6 · clients 1/2 · 30 s left · 1.0 kB up, 500 B down"),
        (3, 6, "block 1-3/6 · clients 2/2 · 20 s left · 2.0 kB up, 1.0 kB down"),
        (4, 6, "block 4-6/6 · clients 1/2 · 10 s left · 3.0 kB up, 1.5 kB down"),
        (6, 6, "block 4-6/6 · clients 2/2 · 4.0 kB up, 2.0 kB down"),
    ]


def test_rounds_are_one_course(lines):
    course = Course(2, 3, Ledger(), RunStatus(), Clock())
    for number in (1, 2, 3):
        for block in (0, 1):
            course.pruning(range(block, block + 1), number)(1, 1)
    found = lines()
    assert [step.done for step in found] == [1, 2, 3, 4, 5, 6]
    assert found[2].details[:2] == ("round 2/3", "block 1/2")


def test_a_run_that_starts_in_the_middle_measures_only_its_own_part(lines):
    clock = Clock()
    course = Course(10, 1, Ledger(), RunStatus(), clock)
    course.pruning(range(8, 9), 1)(0, 1)
    clock.now = 5.0
    course.pruning(range(8, 9), 1)(1, 1)
    assert "5 s left" in lines()[-1].details


def test_a_thousand_clients_are_about_a_hundred_lines(lines):
    report = Course(4, 1, Ledger(), RunStatus(), Clock()).pruning(range(4), 1)
    for answered in range(1001):
        report(answered, 1000)
    assert len(lines()) == 101


@pytest.mark.parametrize("phase", ["handshake", "survey", "evaluate"])
def test_other_exchanges_are_counted(lines, phase):
    status = RunStatus()
    report = counting(status, phase, "they have answered")
    for answered in range(501):
        report(answered, 500)
    found = lines()
    assert len(found) == 101
    assert (found[-1].done, found[-1].total) == (500, 500)
    assert (status.now.answered, status.now.asked) == (500, 500)
    assert status.now.phase == found[-1].phase


def test_show(lines):
    status = RunStatus()
    show(status, "export", 0, 1, "writing the pruned model")
    assert (status.now.phase, status.now.details) == ("export", ["writing the pruned model"])
    assert lines()[0].text == "writing the pruned model"


def test_an_evaluation_tells_of_its_blocks_every_few_seconds(lines):
    clock, status = Clock(), RunStatus()
    report = measuring(status, 1, 2, "pruned model", clock)
    for done in range(1, 9):
        clock.now += 2
        report(done, 8)
    assert [(step.done, step.total, step.text) for step in lines()] == [
        (1, 2, "pruned model"),
        (11, 16, "pruned model · block 3/8"),
        (14, 16, "pruned model · block 6/8"),
    ]
