"""What a person sees of runs on terminals and in pipes: all of it from their status files."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import fedprune
from fedprune.cli.progress import LiveView, PlainView, ProgressView, progress_view
from fedprune.results.run_status import PROGRESS, Status
from tests.support.screen import Screen, run_on_terminal

DETAILS = ["round 1/2", "block 3/6", "clients 1/2", "12 s left", "1.2 MB up, 0.3 MB down"]
BEGUN = "2026-01-01T00:00:00Z"
PROGRAM = """
import os, sys
from pathlib import Path
from rich.console import Console
from fedprune.cli.progress import progress_view
from tests.unit.cli.test_cli_progress import DETAILS, tell

folder = Path(sys.argv[1])
print("before", file=sys.stderr)
with progress_view(Console(file=sys.stderr)) as view:
    view.stage("loading torch")
    view.watch(folder)
    for done in range(1, 7):
        tell(folder, "prune", done, 6, DETAILS)
        view._look()
        if done == 3:
            view.note("warning: half-way")
print("after", file=sys.stderr)
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(*, terminal: bool, width: int = 150, **environment: str) -> Console:
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


def tell(folder: Path, phase: str, done: int, total: int, details: list[str]) -> None:
    """Write a status file as a run does; its time differs each time."""
    status = Status("x", phase=phase, phase_done=done, phase_total=total, details=details)
    path = folder / PROGRESS
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(replace(status, started=BEGUN, updated=BEGUN).to_json())
    os.utime(path, ns=(before + 1_000, before + 1_000))


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("terminal", "environment", "kind"),
    [(True, {}, LiveView), (True, {"TERM": "dumb"}, PlainView), (False, {}, PlainView)],
)
def test_the_view_suits_the_console(terminal, environment, kind):
    assert type(progress_view(console(terminal=terminal, **environment))) is kind


def test_forced_colours_make_no_terminal_of_a_pipe():
    forced = Console(file=io.StringIO(), _environ={"FORCE_COLOR": "1"})
    assert forced.is_terminal and isinstance(progress_view(forced), PlainView)


def test_a_ci_service_s_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert isinstance(progress_view(console(terminal=True)), PlainView)


def test_bars_show_where_runs_are(tmp_path):
    target = console(terminal=True)
    with progress_view(target) as view:
        view.stage("submitting [the] run")
    assert "submitting [the] run" in printed(target) and "%" not in printed(target)
    with progress_view(target) as view:
        view.watch(tmp_path, "job 2 of 3")
        tell(tmp_path, "prune", 3, 4, ["[b]block[/b] 3/6", *DETAILS[2:]])
        view._look()
        view.overall(1, 3, "5 s left")
        view.note("warning: node [b]x[/b] is refused")
        view.leave(tmp_path)
    shown = printed(target)
    assert "job 2 of 3: pruning" in shown and " 75% " in shown
    assert "[b]block[/b] 3/6 · clients 1/2" in shown
    assert "1 of 3 jobs" in shown and " 33% " in shown and "5 s left" in shown
    assert "warning: node [b]x[/b] is refused\n" in shown.replace("\r", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_what_an_earlier_process_has_left_is_not_shown(tmp_path, terminal):
    tell(tmp_path, "evaluate", 1, 2, [])
    target = console(terminal=terminal)
    with progress_view(target) as view:
        view.watch(tmp_path)
        view._look()
        assert "evaluating" not in printed(target)
        tell(tmp_path, "export", 0, 0, [])
        view._look()
        (tmp_path / PROGRESS).write_text("damaged")
        view._look()
    assert "writing the model" in printed(target)


def environment(**more: str) -> dict[str, str]:
    root = Path(fedprune.__file__).parents[1]
    path = {"PYTHONPATH": str(root), "PATH": os.environ["PATH"]}
    return {**path, "TERM": "xterm-256color", **more}


@pytest.mark.parametrize("columns", [40, 120])
def test_on_a_real_terminal_only_what_was_said_stays(tmp_path, columns):
    arguments = ["-c", PROGRAM, str(tmp_path)]
    code, written = run_on_terminal(arguments, [("", columns)], environment())
    assert code == 0, written
    screen = Screen(columns)
    screen.feed(written)
    assert screen.text() == ["before", "warning: half-way", "after"]
    assert "50%" in written and "pruning" in written
    assert ("block 3/6 · clients 1/2 · 12 s left" in written) is (columns == 120)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1


def test_no_colour_where_none_is_wanted(tmp_path):
    arguments = ["-c", PROGRAM, str(tmp_path)]
    _, coloured = run_on_terminal(arguments, [("", 80)], environment())
    _, plain = run_on_terminal(arguments, [("", 80)], environment(NO_COLOR="1"))
    colour = re.compile(r"\x1b\[[\d;]*3\d[\d;]*m")
    assert colour.search(coloured) and not colour.search(plain)


def test_a_pipe_gets_lines_without_control_codes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
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


Step = tuple[float, str, int, int, str]


def plain(folder: Path, *steps: Step, sparing: bool = False) -> list[str]:
    """Return what is printed when a status file says each step at its second."""
    target, clock = console(terminal=False), Clock()
    view: ProgressView = PlainView(target, sparing, clock)
    start = clock.now
    view.watch(folder)
    for second, phase, done, total, details in steps:
        clock.now = start + second
        tell(folder, phase, done, total, details.split(" · "))
        view._look()
    return printed(target).splitlines()


def test_plain_lines_carry_the_time(tmp_path):
    assert plain(tmp_path, (61.25, "prune", 1, 4, "block 3/6 · clients 1/2")) == [
        "[  61.2 s] pruning 25% · block 3/6 · clients 1/2"
    ]


def test_plain_lines_are_few(tmp_path):
    steps: list[Step] = [(0.0, "prune", done, 1000, "x") for done in range(1001)]
    shown = plain(tmp_path, *steps)
    assert len(shown) == 11
    assert shown[0].endswith("pruning 0% · x")
    assert shown[-1].endswith("pruning 100% · x")


def test_a_phase_that_begins_again_is_told(tmp_path):
    steps: list[Step] = [(0.0, "evaluate", done, 2, "x") for done in (0, 1, 2, 0, 1, 2)]
    assert len(plain(tmp_path, *steps)) == 6


@pytest.mark.parametrize("sparing", [False, True])
def test_plain_lines_come_in_a_long_silence_and_with_every_phase(tmp_path, sparing):
    shown = plain(
        tmp_path,
        (0, "prune", 0, 1000, "a"),
        (29, "prune", 10, 1000, "a"),
        (31, "prune", 20, 1000, "a"),
        (32, "export", 0, 1, "a"),
        (32, "export", 0, 1, "b"),
        sparing=sparing,
    )
    assert [line.partition("] ")[2] for line in shown] == (
        ["pruning 2% · a"]
        if sparing
        else ["pruning 0% · a", "pruning 2% · a", "writing the model · a"]
    )


def test_a_plain_line_is_never_wrapped():
    target = console(terminal=False, width=20)
    PlainView(target).note("an error " * 20)
    assert printed(target).count("\n") == 1
