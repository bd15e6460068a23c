"""Pruners and strategies of other packages, found as they are when pip has installed them."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.config import StrategyConfig, config_from_overrides
from fedprune.errors import ConfigError
from fedprune.models.loading import load_model
from fedprune.plugins import PRUNERS, STRATEGIES, load_plugin, plugin_names
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import get_pruner
from server_app.choice import strategy_class
from tests.support.jobs import QUIET, Shuffled, job, masks_of, same_masks, samples_of

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


def test_the_example_is_short_and_prunes(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    text = (EXAMPLE / "fedprune_example.py").read_text()
    assert len(text.splitlines()) < 60
    from fedprune_example import GentlePruner

    from fedprune.pruning.groups import MaskSpec
    from fedprune.pruning.statistics import ColumnStatistics

    weight = torch.tensor([[3.0, 2.0, 1.0, 4.0]])
    norms = torch.tensor([1.0, 4.0, 81.0, 1.0])  # roots 1, 2, 9, 1: scores 3, 4, 9, 4
    spec = MaskSpec(0.5, config_from_overrides([]).pruner.pattern, "row")
    mask = GentlePruner().prune(weight, ColumnStatistics(norms.square(), 1), spec)
    assert mask.to_bool().tolist() == [[False, False, True, True]]


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


def test_the_examples_pruner_and_strategy_run_a_job(example, tmp_path):
    options = ("pruner.name=gentle", "strategy.plugin=lottery", "schedule.blocks_per_message=2")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3))
    again = job(tmp_path / "again", *options, grid=Shuffled(app, 3, seed=1))
    assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=1e-3)
    made = masks_of(tmp_path / "run")
    assert same_masks(made, masks_of(tmp_path / "again")) and again["ledger"]["entries"]
    # In every block the masks are those of one client, and not of the same one in all.
    alone = [
        dict(
            prune_blocks(
                BlockWalk(loaded, samples),
                get_pruner("gentle"),
                block_specs(config, range(6), 6),
            )
        )
        for config in [config_from_overrides([*QUIET, "pruner.name=gentle"])]
        for loaded in [load_model(config.model)]
        for samples in samples_of(3)
    ]
    winners = {
        block: [
            client
            for client, changes in enumerate(alone)
            if all(np.array_equal(m.to_bool(), made[block, n]) for n, m in changes[block].items())
        ]
        for block in range(6)
    }
    assert all(len(found) == 1 for found in winners.values())
    assert len({client for (client,) in winners.values()}) > 1


def test_a_strategy_plugin_must_be_a_strategy(installed):
    def chosen(name: str) -> StrategyConfig:
        return config_from_overrides([f"strategy.plugin={name}"]).strategy

    with pytest.raises(ConfigError, match="no.*'gone'|'gone'.*there are: none"):
        strategy_class(chosen("gone"))
    installed("odd", "class Odd: pass", "odd = odd:Odd", STRATEGIES)
    with pytest.raises(ConfigError, match="`strategy.plugin` 'odd' must be a subclass"):
        strategy_class(chosen("odd"))
