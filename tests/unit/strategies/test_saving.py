"""How often sums are saved while replies arrive."""

from strategies.state import LEAST_SECONDS, SavePace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_sums_are_saved_after_a_while_and_never_at_more_than_a_twentieth_of_the_time():
    clock = Clock()
    pace = SavePace(clock)
    assert not pace.due
    clock.now += LEAST_SECONDS
    assert pace.due
    with pace.saving():
        clock.now += 3.0
    clock.now += 59.0
    assert not pace.due
    clock.now += 1.0
    assert pace.due
    pace.reset()
    assert not pace.due
    with pace.saving():
        clock.now += 0.01
    clock.now += LEAST_SECONDS - 0.02
    assert not pace.due
    clock.now += 0.02
    assert pace.due
