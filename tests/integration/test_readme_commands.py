"""Every command line of the README runs: as it stands, but on small inputs, in this process.

What cannot run here, or runs elsewhere, is listed with where.
"""

import re
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from fedprune.cli import evaluate, main
from tests.support.hub import TOKEN, running_hub
from tests.support.jobs import first_blocks, opt_folder
from tests.support.measuring import measure_quickly

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
LINES = [
    shlex.split(line, comments=True)
    for line in "".join(BLOCKS).replace("\\\n", " ").splitlines()
    if line.strip()
]
ELSEWHERE = {
    "make demo": "tests/e2e/test_flower_runs.py runs its job; a fresh checkout runs the target",
    "make test": "this is part of it",
    "source .venv/bin/activate": "the shell's own",
    "fedprune sweep experiment=fedprllm_main": "long; tests/unit/test_experiments.py plans it",
    "fedprune evaluate runs/NAME --tasks paper": "tests/unit/evaluation/test_zero_shot.py",
    "python scripts/generate_model.py": "tests/unit/scripts/test_generate_model.py",
    "python examples/finetune.py runs/NAME/model tuned": "tests/unit/test_examples.py",
    "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1": "tests/conftest.py sets it",
    "flwr run": "tests/e2e/test_flower_runs.py",
    "cd docker": "the shell's own",
    "./certs.sh": "tests/docker/test_containers.py",
    "docker compose": "tests/docker/test_containers.py",
    "fedprune supernode": "tests/e2e/test_secure_federation.py",
    "fedprune run federation.connection=NAME": "tests/e2e/test_sites_of_their_own.py",
    "fedprune roster show roster.toml": "tests/unit/cli/test_cli_roster.py",
    "fedprune status RUN --watch": "tests/unit/cli/test_cli_status.py",
    "fedprune run strategy=fedexperts": "tests/integration/test_fedexperts.py",
    "fedprune ledger verify": "tests/integration/test_site_control.py",
    "pip install ./examples/plugin": "tests/integration/test_plugins.py, as pip leaves it",
    "fedprune run strategy=fedabsolute pruner.name=gentle schedule=iterative": (
        "tests/integration/test_plugins.py"
    ),
}
SMALL = {
    "federation.backend": "inline",
    "pruner.num_calibration_samples": "1",
    "pruner.seq_len": "32",
    "evaluation.seq_len": "32",
    "evaluation.max_windows": "1",
    "evaluation.centralized": "false",
    "evaluation.local_only": "false",
    "federation.client_gpus": "0",
    "strategy.wait": "1",
}
RUNNABLE = [
    words for words in LINES if not any(shlex.join(words).startswith(one) for one in ELSEWHERE)
]


def fewer(words: list[str]) -> list[str]:
    """Return the words of a sweep with two values of its first list and one of every other."""
    found, most = [], 2
    for word in words:
        key, equals, values = word.partition("=")
        if equals and "," in values:
            values, most = ",".join(values.split(",")[:most]), 1
        found.append(f"{key}{equals}{values}")
    return found


def small(words: list[str], site: Path) -> list[str]:
    """Return overrides of a run with those that make it small in place of their like."""
    kept = [word for word in words if word.partition("=")[0] not in SMALL]
    own = any(word.partition("=")[0] in ("model", "experiment") for word in words)
    model = [] if own else [f"model={site / 'models' / 'short'}"]
    return [*kept, *model, *(f"{key}={value}" for key, value in SMALL.items())]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What the README takes for granted: a model, texts, runs."""
    folder = tmp_path_factory.mktemp("site")
    opt_folder(folder / "models" / "Llama-2-7b-hf")
    first_blocks(folder / "models" / "short", 3)
    (folder / "texts").mkdir()
    for number in range(4):
        text = f"Owner {number} writes about the weather and the sea. " * 200
        (folder / "texts" / f"{number}.txt").write_text(text)
    assert main(["run", *small([], folder), f"output_dir={folder / 'runs' / 'NAME'}"]) == 0
    for name in "ab":
        shutil.copytree(folder / "runs" / "NAME", folder / "runs" / name)
    runs = folder / "runs"
    kinds = "strategy.statistics='columns,moments'"
    assert main(["collect", *small([kinds], folder), f"output_dir={runs / 'collected'}"]) == 0
    solve = ["solve", str(runs / "collected"), "sparsity=0.6", f"output_dir={runs / 'solved'}"]
    assert main(solve) == 0
    return folder


@pytest.fixture
def typed(site, tmp_path, monkeypatch):
    """Return what a user of this site types for a line of the README."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(site / "runs")
    places = {
        "/models/Llama-2-7b-hf": str(site / "models" / "Llama-2-7b-hf"),
        "/models/shape": str(tmp_path / "shape"),
        "llama-2-7b": str(site / "models" / "Llama-2-7b-hf"),
        "BASE_MODEL": str(site / "models" / "short"),
        "wikitext2,c4,ptb": str(site / "texts" / "1.txt"),
        "data=c4": f"data={site / 'texts'}",
        "data=/texts": f"data={site / 'texts'}",
    }

    def replaced(word: str) -> str:
        for text, place in places.items():
            if (
                word == text
                or word.endswith(f"={text}")
                or (word.startswith("data") and text in word)
            ):
                return word.replace(text, place)
        return word

    return lambda words: [replaced(word) for word in words]


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """A hub and a browser that are on this machine, and models that take turns once."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda page, *_: opened.append(page) or True)
    measure_quickly(monkeypatch, evaluate)
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_every_line_is_run_here_or_elsewhere():
    assert len(RUNNABLE) > 15 and {words[0] for words in RUNNABLE} == {"fedprune"}
    for start in ELSEWHERE:
        assert any(shlex.join(words).startswith(start) for words in LINES), start
    for where in ELSEWHERE.values():
        for path in re.findall(r"tests/\S+\.py", where):
            assert (README.parent / path).is_file(), path


@pytest.mark.parametrize("words", RUNNABLE, ids=" ".join)
def test_a_line_of_the_readme_runs(words, site, typed, tmp_path, capsys):
    _, command, *arguments = typed(words)
    expected = {0}
    if command in ("run", "collect") and "resume=runs/NAME" not in words:
        arguments = [*small(arguments, site), f"output_dir={tmp_path / 'run'}"]
    elif command == "audit":
        arguments = [*arguments, "pruner.num_calibration_samples=1", "pruner.seq_len=32"]
        arguments.append(f"model={site / 'models' / 'short'}")
    elif command == "solve":
        arguments.append(f"output_dir={tmp_path / 'run'}")
    elif command == "sweep" and "from=runs/collected" in words:
        arguments = [*fewer(arguments), f"output_dir={tmp_path / 'sweep'}", "--jobs", "1"]
    elif command == "run":
        arguments.append("federation.backend=inline")
    elif command == "sweep":
        arguments = [*small(fewer(arguments), site), f"output_dir={tmp_path / 'sweep'}"]
        arguments += ["--jobs", "1"]
    elif command == "doctor":
        expected = {0, 1}  # the machine may lack something
    code = main([command, *arguments])
    assert code in expected, capsys.readouterr().err
