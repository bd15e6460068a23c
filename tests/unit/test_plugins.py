"""Pruners and strategies of other packages, found as they are when pip has installed them."""

import sys
from pathlib import Path

import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.plugins import PRUNERS, load_plugin, plugin_names
from fedprune.pruning.registry import get_pruner


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder that looks to Python like one into which a package was installed."""

    def install(name: str, source: str, entry_points: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{PRUNERS}]\n{entry_points}\n")

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


HALF = """
from fedprune.pruning.pruners import MagnitudePruner
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
    folder = Path(__file__).parents[2] / "examples" / "plugin"
    monkeypatch.syspath_prepend(folder)
    text = (folder / "fedprune_example.py").read_text()
    assert len(text.splitlines()) < 60
    from fedprune_example import GentlePruner

    from fedprune.pruning.spec import MaskSpec
    from fedprune.pruning.statistics import ColumnStatistics

    weight = torch.tensor([[3.0, 2.0, 1.0, 4.0]])
    norms = torch.tensor([1.0, 4.0, 81.0, 1.0])  # roots 1, 2, 9, 1: scores 3, 4, 9, 4
    spec = MaskSpec(0.5, config_from_overrides([]).pruner.pattern, "row")
    mask = GentlePruner().prune(weight, ColumnStatistics(norms.square(), 1), spec)
    assert mask.to_bool().tolist() == [[False, False, True, True]]
