"""A method's name stands in its room, in its Flower-facing class and in `conf`, nowhere else."""

import re
from pathlib import Path

import pytest

from fedprune.config import config_from_overrides
from fedprune.config.schema import PAYLOADS
from fedprune.methods.registry import exchanges, get_method, method_names

ROOT = Path(__file__).parents[3]
PACKAGES = ("client_app", "server_app", "strategies", "fedprune", "docker")
FLOWER_FACING = ROOT / "strategies" / "__init__.py"


# Words of plain English: only where they name the method, not where they say what is done.
ENGLISH = {
    "depth": r"strategy(\.name)?=depth|==\s*[\"']depth[\"']",
    "collect": r"strategy(\.name)?=collect|==\s*[\"']collect[\"']",
}
OWN_COMMANDS = {ROOT / "fedprune" / "cli" / "collect.py"}


@pytest.mark.parametrize("name", method_names())
def test_a_name_stands_in_its_own_room_only(name):
    room = ROOT / "fedprune" / "methods" / name
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if room not in path.parents and path not in {FLOWER_FACING, *OWN_COMMANDS}
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(ENGLISH.get(name, rf"\b{name}\b"), line)
    ]
    assert not found


@pytest.mark.parametrize("name", method_names())
def test_a_method_says_what_a_report_needs(name):
    method = get_method(name)
    assert method.name == name
    for words in (method.words.label, method.words.does, method.words.sends, method.words.tells):
        assert words
    pruner = ["pruner=sparsegpt"] if name == "fedhessian" else []
    held = exchanges(config_from_overrides([f"strategy={name}", *pruner]))
    assert list(held) == (["prune", "survey"] if name == "depth" else ["prune"])
    assert held["prune"].payload in PAYLOADS


def test_owl_brings_a_survey():
    held = exchanges(config_from_overrides(["allocation=owl", "sparsity=0.6"]))
    assert list(held) == ["prune", "survey"] and held["survey"].payload == "sums"
