"""Pruners and strategies of other packages, found as they are when pip has installed them."""

import sys
import tomllib
from pathlib import Path

import pytest
import torch

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.models.loading import load_model
from fedprune.plugins import METHODS, PRUNERS, load_plugin, plugin_names
from fedprune.pruning.blocks import BlockWalk, prune_block
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import get_pruner
from tests.support.jobs import QUIET, Shuffled, first_blocks, job, masks_of, same_masks, samples_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder that looks to Python like one into which a package was installed."""

    def install(name: str, source: str, entry_points: str, group: str = PRUNERS) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry_points}\n")

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


HALF = """
from fedprune.pruning.wanda import MagnitudePruner
class Half(MagnitudePruner):
    name = "half"
"""


def test_an_installed_pruner_can_be_named(installed):
    with pytest.raises(ConfigError, match="`pruner.name` must be one of.*got 'half'"):
        config_from_overrides(["pruner.name=half"])
    installed("halves", HALF, "half = halves:Half")
    assert plugin_names(PRUNERS) == ("half",)
    assert config_from_overrides(["pruner.name=half"]).pruner.name == "half"
    assert get_pruner("half").needs == "nothing"


def test_a_name_that_nobody_installed():
    with pytest.raises(ConfigError, match="no.*'gone'|'gone'.*there are: none"):
        load_plugin(PRUNERS, "gone")
    with pytest.raises(ConfigError, match="`pruner.name` must be one of 'magnitude'.*got 'gone'"):
        get_pruner("gone")


@pytest.mark.parametrize(
    ("source", "entry", "message"),
    [
        ("import nothing_like_it", "odd:Odd", "'odd' .odd:Odd. cannot be imported.*nothing_like"),
        ("", "odd:Odd", "cannot be imported.*Install its package again"),
        ("class Odd:\n  name = 'odd'\n  needs = 'nothing'", "odd:Odd", "has no updates, prune"),
        ("Odd = 3", "odd:Odd", "is no pruner: it has no name"),
    ],
)
def test_plugins_that_are_none(installed, source, entry, message):
    installed("odd", source, f"odd = {entry}")
    with pytest.raises(ConfigError, match=message):
        get_pruner("odd")


def test_the_example_is_short():
    lines = [
        line
        for path in (EXAMPLE / "fedprune_example").glob("*.py")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) < 100


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example's package as if pip had installed it: its module and its own entry points."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "fedprune_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedprune-example\nVersion: 0.1\n")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE)


def test_the_examples_statistic_pruner_and_method_run_a_job(example, tmp_path):
    model = first_blocks(tmp_path / "demo", 2)
    options = ("strategy=fedabsolute", "pruner.name=gentle", "schedule=iterative", f"model={model}")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3))
    again = job(tmp_path / "again", *options, grid=Shuffled(app, 3, seed=1))
    assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=1e-2)
    made = masks_of(tmp_path / "run")
    assert same_masks(made, masks_of(tmp_path / "again")) and again["ledger"]["entries"]
    assert "FedAbsolute" in (tmp_path / "run" / "report.html").read_text()
    # By hand: one walk over all samples, |W| times the sum of absolute inputs, the lower half goes.
    config = config_from_overrides([*QUIET, *options])
    loaded = load_model(config.model)
    walk = BlockWalk(loaded, [sample for own in samples_of(3) for sample in own])
    spec = block_specs(config, range(1), 2)[0]
    inputs = []
    linear = loaded.layout.linears(0)["self_attn.q_proj"].module
    handle = linear.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    prune_block(walk, get_pruner("magnitude"), spec)
    walk.collect("columns")
    handle.remove()
    sums = sum(one.double().abs().reshape(-1, one.shape[-1]).sum(0) for one in inputs)
    scores = walk.weights()["self_attn.q_proj"].double().abs() * sums
    lowest = scores.argsort(dim=1, stable=True)[:, : scores.shape[1] // 2]
    keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
    assert (keep.numpy() == made[0, "self_attn.q_proj"]).mean() > 0.999


def test_a_method_that_is_none(installed):
    with pytest.raises(ConfigError, match="strategy.*must be one of.*got 'gone'"):
        config_from_overrides(["strategy=gone"])
    installed("odd", "class Odd: pass", "odd = odd:Odd", METHODS)
    with pytest.raises(ConfigError, match="no method: its entry point names no package"):
        config_from_overrides(["strategy=odd"])
