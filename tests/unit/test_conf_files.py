"""Every YAML file says how to run it, has every key, and composes to a configuration that holds."""

from pathlib import Path

import pytest
import yaml

from fedprune.config import StrategyConfig, compose_config, config_from_overrides
from fedprune.config.keys import all_keys
from fedprune.config.overrides import OPTION_GROUPS, group_options
from fedprune.config.schema import UNIONS

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [(group, option) for group in OPTION_GROUPS for option in group_options(group)]
NEEDS = {("model", "hf"): ["model.path=/x"]} | {
    ("data", name): ["data.path=/x"] for name in ("files", "hub")
}
NEEDS[("allocation", "per_block")] = ["allocation.blocks=0.4,0.6"]
NEEDS[("allocation", "per_linear")] = ["allocation.linears=mlp.up_proj=0.5,0.5"]
NEEDS[("strategy", "fedhessian")] = ["pruner=sparsegpt"]
NEEDS[("pruner", "gptq")] = ["strategy=fedhessian"]
NEEDS[("pruner", "rounding")] = ["strategy=fedstats"]
SPARSITIES = {("experiment", "demo"): 0.6, ("pruner", "gptq"): 0, ("pruner", "rounding"): 0}
NEEDS[("pruner", "structured")] = ["strategy=fedhessian"]
NEEDS |= {("reconstruct", rule): ["schedule=iterative"] for rule in ("fedsgd", "fedavg")}


def name(path: Path) -> str:
    return path.relative_to(CONF).as_posix()


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_passes_the_checks(group, option):
    config = compose_config(
        {"overrides": " ".join([f"{group}={option}", *NEEDS.get((group, option), [])])}
    )
    assert config.sparsity == SPARSITIES.get((group, option), 0.5)


@pytest.mark.parametrize("option", group_options("experiment"))
def test_every_experiment_is_a_job_that_the_command_line_accepts(option):
    config_from_overrides([f"experiment={option}"])


def test_the_demo_is_the_default_model_and_texts_with_unlike_clients_of_few_samples():
    demo, default = compose_config({"experiment": "demo"}), compose_config({})
    assert (demo.model, demo.data, demo.strategy) == (default.model, default.data, default.strategy)
    assert demo.data.partition == "by_group"
    assert demo.federation.num_clients == 8 and demo.pruner.num_calibration_samples == 2
    assert demo.evaluation.local_only and demo.evaluation.centralized


def test_all_groups_have_options_and_all_files_belong_to_one():
    assert {group for group, _ in OPTIONS} == set(OPTION_GROUPS)
    folders = {path.parent.relative_to(CONF).as_posix() for path in FILES} - {"."}
    assert folders == set(OPTION_GROUPS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_starts_with_what_it_is_the_command_and_an_example(path):
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = [line for line in comment if not line.startswith("@package")]
    commands = [line.partition("  ")[0] for line in text if line.startswith("fedprune run")]
    assert text and not text[0].startswith("fedprune run")
    assert len(commands) == 2


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_commands_in_the_comments_are_right(path):
    lines = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line.startswith("fedprune run"):
            command = line.partition("  ")[0].replace("'", "")
            config_from_overrides(command.split()[2:])


def test_every_key_is_explained_somewhere():
    explained = set()
    for path in FILES:
        section = None if path.parent == CONF else path.parent.name
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines[0] == "# @package _global_" and f"{section}:" in lines:
            lines = [line.removeprefix("  ") for line in lines[lines.index(f"{section}:") :]]
        for line in lines:
            key, colon, rest = line.partition(":")
            if colon and "#" in rest and key == key.strip():
                explained.add(f"{section}.{key}" if section else key)
    names = {key for key in all_keys() if not key.endswith(".name")}
    assert names <= explained


@pytest.mark.parametrize("strategy", group_options("strategy"))
def test_a_strategy_s_file_holds_its_own_keys_and_no_others(strategy):
    found = yaml.safe_load((CONF / "strategy" / f"{strategy}.yaml").read_text(encoding="utf-8"))
    own = UNIONS["strategy"][strategy].model_fields.keys() - StrategyConfig.model_fields.keys()
    assert found.keys() - {"defaults", "name"} == own
