"""What a person sees of a run on terminals and in pipes."""

import io

import pytest
from rich.console import Console

from fedprune.cli.progress import _LABELS, LiveView, PlainView, ProgressView, progress_view
from fedprune.reporting.progress import PHASES, Progress


def console(*, terminal: bool, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, _environ={}
    )


def printed(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_phase_has_a_label() -> None:
    assert set(_LABELS) == set(PHASES)


@pytest.mark.parametrize(
    ("terminal", "width", "kind"),
    [(True, 100, LiveView), (True, 59, PlainView), (False, 100, PlainView)],
)
def test_the_view_suits_the_console(terminal: bool, width: int, kind: type) -> None:
    assert type(progress_view(console(terminal=terminal, width=width))) is kind


def test_a_dumb_terminal_gets_plain_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "dumb"})
    assert isinstance(progress_view(dumb), PlainView)


def test_the_live_line_shows_where_the_run_is() -> None:
    target = console(terminal=True)
    with progress_view(target) as view:
        view.stage("submitting [the] run")
    assert "submitting [the] run" in printed(target) and "%" not in printed(target)
    with progress_view(target) as view:
        view.update(Progress("prune", 3, 4, "block 3 of 4, 1.2 MB up"))
        view.note("warning: node [b]x[/b] is refused")
    shown = printed(target)
    assert "pruning" in shown and " 75% " in shown and "block 3 of 4, 1.2 MB up" in shown
    assert "warning: node [b]x[/b] is refused\n" in shown.replace("\r", "")


def test_the_live_line_bears_a_phase_without_steps() -> None:
    target = console(terminal=True)
    with progress_view(target) as view:
        view.update(Progress("export", 0, 0))
    assert "writing the model" in printed(target)


def plain(*steps: tuple[float, Progress | str]) -> list[str]:
    """Return what is printed when each step happens at its second."""
    target, clock = console(terminal=False), Clock()
    view: ProgressView = PlainView(target, clock)
    start = clock.now
    with view:
        for second, step in steps:
            clock.now = start + second
            if isinstance(step, str):
                view.stage(step)
            else:
                view.update(step)
    return printed(target).splitlines()


def test_plain_lines_carry_the_time() -> None:
    assert plain((0, "submitting the run"), (61.25, Progress("prune", 1, 4, "block 1 of 4"))) == [
        "[   0.0 s] submitting the run",
        "[  61.2 s] pruning 1/4 block 1 of 4",
    ]


def test_plain_lines_are_few() -> None:
    steps = [(0.0, Progress("prune", done, 1000, "x")) for done in range(1001)]
    shown = plain(*steps)
    assert len(shown) == 11
    assert shown[0].endswith("pruning 0/1000 x")
    assert shown[-1].endswith("pruning 1000/1000 x")


def test_plain_lines_come_in_a_long_silence_and_with_every_phase() -> None:
    shown = plain(
        (0, Progress("prune", 0, 1000)),
        (9, Progress("prune", 1, 1000)),
        (11, Progress("prune", 2, 1000)),
        (12, Progress("export", 0, 1)),
        (12, Progress("export", 1, 1)),
        (12, Progress("export", 1, 1)),
    )
    assert [line.partition("] ")[2] for line in shown] == [
        "pruning 0/1000",
        "pruning 2/1000",
        "writing the model 0/1",
        "writing the model 1/1",
    ]


def test_a_plain_line_is_never_wrapped() -> None:
    target = console(terminal=False, width=20)
    PlainView(target).note("an error " * 20)
    assert printed(target).count("\n") == 1
