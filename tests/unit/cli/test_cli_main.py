"""Arguments and exit codes of the `fedprune` command."""

import inspect
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest

import fedprune
from fedprune.cli import doctor, main, run
from fedprune.cli.commands import COMMANDS
from fedprune.errors import ConfigError, DataError


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedprune {fedprune.__version__}\n"


def test_help_has_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "fedprune run sparsity=0.6" in shown
    assert "130 interrupted" in shown


@pytest.mark.parametrize(
    "arguments", [[], ["sweep"], ["evaluate"], ["run", "--unknown"], ["doctor", "x=1"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: fedprune" in capsys.readouterr().err


def test_overrides_are_handed_on_as_typed(monkeypatch):
    taken: list[list[str]] = []
    monkeypatch.setattr(run, "run_job", lambda overrides: taken.append(overrides) or 0)
    assert main(["run", "sparsity=0.6", "data=/a b", "--debug"]) == 0
    assert taken == [["sparsity=0.6", "data=/a b"]]


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_run_s_exit_code_is_the_command_s(monkeypatch, code):
    monkeypatch.setattr(run, "run_job", lambda overrides: code)
    assert main(["run"]) == code


@pytest.mark.parametrize(("error", "code"), [(ConfigError("`a` is b"), 2), (DataError("gone"), 1)])
def test_an_error_is_one_line(monkeypatch, capsys, error, code):
    def fail(overrides: list[str]) -> int:
        raise error

    monkeypatch.setattr(run, "run_job", fail)
    assert main(["run"]) == code
    assert capsys.readouterr().err == f"fedprune run: {error}\n"
    with pytest.raises(type(error)):
        main(["run", "--debug"])


def test_an_interruption_has_its_code(monkeypatch):
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run_doctor", interrupt)
    assert main(["doctor"]) == 130


def test_python_m_fedprune_is_the_command(tmp_path):
    folder = Path(fedprune.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "fedprune", "run", "sparsty=0.5"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "sparsity" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_wait_for_torch():
    folder = Path(fedprune.__file__).parents[1]
    code = "import sys, fedprune.cli.run; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(folder), "PATH": ""}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_arguments_are_those_of_the_function_that_it_names(name):
    parser = ArgumentParser(add_help=False)
    if COMMANDS[name].arguments is not None:
        COMMANDS[name].arguments(parser)
    verbs = [one for one in parser._actions if isinstance(one.choices, dict)]
    parsers = [(one, one._defaults["function"]) for verb in verbs for one in verb.choices.values()]
    for one, function in parsers or [(parser, COMMANDS[name].function)]:
        given = {action.dest for action in one._actions} | {*one._defaults} - {"function"}
        module, _, called = function.rpartition(".")
        wanted = inspect.signature(getattr(import_module(f"fedprune.{module}"), called))
        wanted.bind(**dict.fromkeys(given - {"help", "function"}))
