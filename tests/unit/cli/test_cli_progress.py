"""What a person sees of a run on terminals and in pipes."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import fedprune
from fedprune.cli.progress import (
    LiveView,
    PlainView,
    ProgressView,
    flowed,
    progress_view,
)
from fedprune.results.progress import LABELS, PHASES, Progress
from tests.support.screen import Screen, run_on_terminal

DETAILS = ("round 1/2", "block 3/6", "clients 1/2", "12 s left", "1.2 MB up, 0.3 MB down")
# Its argument says which width it waits for after each step.
PROGRAM = """
import json, os, sys, time
from rich.console import Console
from fedprune.cli.progress import progress_view
from fedprune.results.progress import Progress

details = ("round 1/2", "block 3/6", "clients 1/2", "12 s left", "1.2 MB up, 0.3 MB down")
widths = json.loads(sys.argv[1])
print("before", file=sys.stderr)
with progress_view(Console(file=sys.stderr)) as view:
    view.stage("loading torch")
    for done in range(1, 7):
        view.update(Progress("prune", done, 6, details))
        while str(done) in widths and os.get_terminal_size(2).columns != widths[str(done)]:
            time.sleep(0.01)
        if done == 3:
            view.note("warning: half-way")
print("after", file=sys.stderr)
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(*, terminal: bool, width: int = 100, **environment: str) -> Console:
    return Console(
        file=Terminal() if terminal else io.StringIO(),
        force_terminal=terminal,
        width=width,
        color_system=None,
        _environ=environment,
    )


def printed(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_phase_has_a_label() -> None:
    assert set(LABELS) == {*PHASES, "load", "sweep"}


@pytest.mark.parametrize(
    ("terminal", "environment", "kind"),
    [(True, {}, LiveView), (True, {"TERM": "dumb"}, PlainView), (False, {}, PlainView)],
)
def test_the_view_suits_the_console(
    terminal: bool, environment: dict[str, str], kind: type
) -> None:
    assert type(progress_view(console(terminal=terminal, **environment))) is kind


def test_forced_colours_make_no_terminal_of_a_pipe() -> None:
    forced = Console(file=io.StringIO(), _environ={"FORCE_COLOR": "1"})
    assert forced.is_terminal and isinstance(progress_view(forced), PlainView)


def test_a_ci_service_s_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert isinstance(progress_view(console(terminal=True)), PlainView)


def test_the_live_line_shows_where_the_run_is() -> None:
    target = console(terminal=True)
    with progress_view(target) as view:
        view.stage("submitting [the] run")
    assert "submitting [the] run" in printed(target) and "%" not in printed(target)
    with progress_view(target, "job 2") as view:
        view.update(Progress("prune", 3, 4, DETAILS))
        view.note("warning: node [b]x[/b] is refused")
    shown = printed(target)
    assert "job 2: pruning" in shown and " 75% " in shown and "block 3/6 · clients 1/2" in shown
    assert "warning: node [b]x[/b] is refused\n" in shown.replace("\r", "")


def test_the_live_line_bears_a_phase_without_steps() -> None:
    target = console(terminal=True)
    with progress_view(target) as view:
        view.update(Progress("export", 0, 0))
    assert "writing the model" in printed(target)


def test_a_wide_window_has_all_in_one_line_with_a_bar() -> None:
    (line,) = flowed("pruning", 0.5, DETAILS, 120)
    assert line == f"pruning {'━' * 10}{'╌' * 10} 50% · {' · '.join(DETAILS)}"


def test_a_narrow_window_has_all_in_three_lines() -> None:
    assert flowed("pruning", 0.5, DETAILS, 37) == [
        "pruning 50% · round 1/2 · block 3/6",
        "clients 1/2 · 12 s left",
        "1.2 MB up, 0.3 MB down",
    ]


def test_a_terminal_without_other_characters_gets_ascii() -> None:
    assert "".join(flowed("pruning", 0.5, DETAILS, 90, ascii_only=True)).isascii()


@given(
    st.text(alphabet="ab c%漢", min_size=1, max_size=20),
    st.floats(-1, 1),
    st.lists(st.text(alphabet="xyz 漢", max_size=30), max_size=6),
    st.integers(8, 130),
)
def test_no_line_is_ever_wider_than_the_window(
    head: str, share: float, details: list[str], width: int
) -> None:
    lines = flowed(head, share, details, width)
    assert 1 <= len(lines) <= 3
    assert all(cell_len(line) <= width for line in lines)
    if share >= 0:
        assert f" {share:.0%}" in lines[0]


def environment(**more: str) -> dict[str, str]:
    folder = str(Path(fedprune.__file__).parents[1])
    return {"PYTHONPATH": folder, "PATH": os.environ["PATH"], "TERM": "xterm-256color", **more}


@pytest.mark.parametrize("columns", [40, 120])
def test_on_a_real_terminal_only_what_was_said_stays(columns: int) -> None:
    code, written = run_on_terminal(["-c", PROGRAM, "{}"], [("", columns)], environment())
    assert code == 0, written
    screen = Screen(columns)
    screen.feed(written)
    assert screen.text() == ["before", "warning: half-way", "after"]
    assert screen.widest < columns
    assert "50%" in written and "clients 1/2" in written and "12 s left" in written
    assert ("━" in written) is (columns == 120)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1


def test_a_window_may_change_its_width() -> None:
    widths = [("", 120), ("33%", 40), ("67%", 100)]
    arguments = ["-c", PROGRAM, '{"2": 40, "4": 100}']
    code, written = run_on_terminal(arguments, widths, environment())
    assert code == 0, written
    wide, narrow = written.index("33%"), written.index("50%")
    assert "\n" not in written[wide : written.index("\x1b[2K", wide)]
    assert "\n" in written[narrow : written.index("\x1b[2K", narrow)]
    screen = Screen(120)
    screen.feed(written)
    assert screen.text()[-2:] == ["warning: half-way", "after"]


def test_no_colour_where_none_is_wanted() -> None:
    _, coloured = run_on_terminal(["-c", PROGRAM, "{}"], [("", 80)], environment())
    _, plain = run_on_terminal(["-c", PROGRAM, "{}"], [("", 80)], environment(NO_COLOR="1"))
    colour = re.compile(r"\x1b\[[\d;]*3\d[\d;]*m")
    assert colour.search(coloured) and not colour.search(plain)


def test_a_pipe_gets_lines_without_control_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "{}"],
        env=environment(FORCE_COLOR="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line.partition("] ")[2] or line for line in done.stderr.splitlines()]
    details = " · ".join(DETAILS)
    assert said[:3] == ["before", "loading torch", f"pruning 17% · {details}"]
    assert said[-3:-1] == [f"pruning 83% · {details}", f"pruning 100% · {details}"]
    assert "\x1b" not in done.stderr.replace("\r", "\x1b")


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
    assert plain((0, "submitting the run"), (61.25, Progress("prune", 1, 4, DETAILS[1:3]))) == [
        "[   0.0 s] submitting the run",
        "[  61.2 s] pruning 25% · block 3/6 · clients 1/2",
    ]


def test_plain_lines_are_few() -> None:
    steps = [(0.0, Progress("prune", done, 1000, ("x",))) for done in range(1001)]
    shown = plain(*steps)
    assert len(shown) == 11
    assert shown[0].endswith("pruning 0% · x")
    assert shown[-1].endswith("pruning 100% · x")


def test_a_phase_that_begins_again_is_told() -> None:
    steps = [(0.0, Progress("evaluate", done, 2, ("x",))) for done in (0, 1, 2, 0, 1, 2)]
    assert len(plain(*steps)) == 6


def test_plain_lines_come_in_a_long_silence_and_with_every_phase() -> None:
    shown = plain(
        (0, Progress("prune", 0, 1000)),
        (29, Progress("prune", 10, 1000)),
        (31, Progress("prune", 20, 1000)),
        (32, Progress("export", 0, 1, ("a",))),
        (32, Progress("export", 1, 1, ("b",))),
        (32, Progress("export", 1, 1, ("c",))),
    )
    assert [line.partition("] ")[2] for line in shown] == [
        "pruning 0%",
        "pruning 2%",
        "writing the model · a",
        "writing the model · b",
    ]


def test_a_plain_line_is_never_wrapped() -> None:
    target = console(terminal=False, width=20)
    PlainView(target).note("an error " * 20)
    assert printed(target).count("\n") == 1
