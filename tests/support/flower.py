"""A `flwr` and a `flower-superlink` that answer as told, run as the real ones are: as processes."""

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from fedprune.flower.command import Connection

_FLWR = """#!{python}
import json, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
name = sys.argv[1]
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
called = [json.loads(line)[0] for line in (here / "calls.jsonl").open()].count(name)
answers = json.loads((here / "answers.json").read_text())[name]
answer = answers[min(called, len(answers)) - 1]
if name == "run":
    shutil.copy(sys.argv[sys.argv.index("--run-config") + 1], here / "run.toml")
for path, text in answer.get("files", {}).items():
    pathlib.Path(path).write_text(text)
sys.stdout.write(answer.get("out", ""))
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("code", 0))
"""


@dataclass
class FakeFlwr:
    """The fake command's folder."""

    folder: Path

    def answers(self, **steps: list[dict[str, object]]) -> None:
        """Set what each subcommand answers, call by call; the last answer is repeated."""
        (self.folder / "answers.json").write_text(json.dumps(steps))

    def calls(self, name: str) -> list[list[str]]:
        """Return the arguments of each call of a subcommand."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == name]

    def run_config(self) -> str:
        """Return the TOML file that `flwr run` was given."""
        return (self.folder / "run.toml").read_text()

    @property
    def connection(self) -> Connection:
        """Return a connection whose PATH starts with this command."""
        path = os.pathsep.join([str(self.folder), os.environ["PATH"]])
        return Connection("fake", {**os.environ, "PATH": path}, self.folder)


def said(**values: object) -> dict[str, object]:
    """Return an answer in JSON."""
    return {"out": json.dumps(values)}


def listed(status: str, details: str = "N/A") -> dict[str, object]:
    """Return what `flwr list` says about a run."""
    return said(success=True, runs=[{"status": status, "status-details": details}])


def executable(path: Path, text: str) -> Path:
    """Write a Python script that can be run by name."""
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def fake_flwr(folder: Path) -> FakeFlwr:
    """Make a fake `flwr` in a new folder."""
    folder.mkdir()
    executable(folder / "flwr", _FLWR)
    return FakeFlwr(folder)
