"""Every rule about single values and their relations, and that all problems are told at once."""

import copy

import pytest
import yaml

from fedprune.config import Pattern, compose_config, from_yaml, to_yaml
from fedprune.config.keys import all_keys, bounds, value_type
from fedprune.config.validation import checked
from fedprune.errors import ConfigError

DEFAULTS = yaml.safe_load(to_yaml(compose_config({})))


def changed(**values):
    """Return the defaults with dotted keys (written with __) replaced."""
    data = copy.deepcopy(DEFAULTS)
    for key, value in values.items():
        *sections, name = key.split("__")
        inner = data
        for section in sections:
            inner = inner[section]
        inner[name] = value
    return data


def problem(**values) -> str:
    with pytest.raises(ConfigError) as caught:
        checked(changed(**values))
    return str(caught.value)


def test_the_defaults_have_their_types():
    config = checked(copy.deepcopy(DEFAULTS))
    assert config.sparsity == 0.5 and config.seed == 0
    assert config.pruner.pattern == Pattern.parse("unstructured")
    assert (config.pruner.seq_len, config.pruner.num_calibration_samples) == (128, 32)
    assert config.evaluation.local_only and config.evaluation.centralized
    assert config.federation.num_clients == 2 and config.federation.connection == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sparsity": 1}, ["`sparsity`", "at least 0 and below 1", "got 1"]),
        ({"sparsity": -0.1}, ["`sparsity`", "got -0.1"]),
        ({"sparsity": float("nan")}, ["`sparsity`", "finite", "nan"]),
        ({"sparsity": float("inf")}, ["`sparsity`", "finite", "inf"]),
        ({"sparsity": "0.5"}, ["`sparsity`", "a number", "'0.5'"]),
        ({"sparsity": True}, ["`sparsity`", "a number", "true"]),
        ({"seed": True}, ["`seed`", "a whole number", "true"]),
        ({"seed": 1.0}, ["`seed`", "a whole number", "1.0"]),
        ({"seed": -1}, ["`seed`", "at least 0", "-1"]),
        ({"seed": 2**63}, ["`seed`", "64 bits"]),
        ({"seed": 10**5000}, ["`seed`", "64 bits", "bits"]),
        ({"seed": None}, ["`seed`", "a whole number", "null"]),
        ({"output_dir": 7}, ["`output_dir`", "text", "7"]),
        ({"output_dir": "a\0b"}, ["`output_dir`", "control characters"]),
        ({"model": "demo"}, ["`model`", "mapping", "'demo'"]),
        ({"model__name": "dmeo"}, ["`model.name`", "'demo', 'hf'", "Did you mean 'demo'"]),
        ({"model__dtype": "fp16"}, ["`model.dtype`", "'float16'", "'fp16'"]),
        ({"model__name": "hf"}, ["`model.path`", "model=/path/to/folder"]),
        ({"model__path": "/x"}, ["`model.path`", "model=demo", "'/x'"]),
        ({"model__revision": ""}, ["`model.revision`", "empty", "null"]),
        ({"data__source": "filez"}, ["`data.source`", "Did you mean 'files'"]),
        ({"data__source": "files"}, ["`data.path`", "file or folder"]),
        ({"data__source": "hub"}, ["`data.path`", "data set id"]),
        ({"data__path": "/x"}, ["`data.path`", "stdlib", "data=/path/to/texts"]),
        ({"data__partition": "dirichlt"}, ["`data.partition`", "Did you mean 'dirichlet'"]),
        ({"data__alpha": 0}, ["`data.alpha`", "above 0"]),
        ({"data__sampling": "random"}, ["`data.sampling`", "'packed', 'published'"]),
        ({"data__joiner": "newline"}, ["`data.joiner`", "'blank_line'"]),
        ({"data__heldout_documents": 0}, ["`data.heldout_documents`", "at least 1"]),
        ({"evaluation__datasets": "c4,ptbb"}, ["`evaluation.datasets`", "Did you mean 'ptb'"]),
        ({"data__heldout_fraction": 0}, ["`data.heldout_fraction`", "above 0 and below 1"]),
        ({"data__heldout_fraction": 1.0}, ["`data.heldout_fraction`", "got 1.0"]),
        ({"data__max_documents": 0}, ["`data.max_documents`", "at least 1"]),
        ({"data__name": "a.b"}, ["`data.name`", "label", "'a.b'"]),
        ({"data__text_key": ""}, ["`data.text_key`", "empty"]),
        ({"data__glob": "../*"}, ["`data.glob`", "inside the folder"]),
        ({"data__glob": "/etc/*"}, ["`data.glob`", "inside the folder"]),
        ({"data__heldout_split": "x"}, ["`data.heldout_split` is a key of hub; stdlib has no key"]),
        ({"pruner__name": "wnada"}, ["`pruner.name`", "Did you mean 'wanda'"]),
        ({"pruner__group": "output"}, ["`pruner.group`", "'layer', 'row', 'column'"]),
        ({"pruner__pattern": "4:2"}, ["`pruner.pattern`", "N:M", "'4:2'"]),
        ({"pruner__pattern": "3:3"}, ["`pruner.pattern`", "'3:3'"]),
        ({"pruner__pattern": 124}, ["`pruner.pattern`", "in quotes", "124"]),
        ({"pruner__seq_len": 1}, ["`pruner.seq_len`", "at least 2"]),
        ({"pruner__seq_len": "128"}, ["`pruner.seq_len`", "a whole number", "'128'"]),
        ({"pruner__num_calibration_samples": 0}, ["`pruner.num_calibration_samples`", "got 0"]),
        ({"pruner__device": "gpu"}, ["`pruner.device`", "'cuda:N'", "'gpu'"]),
        ({"strategy__name": "fedavg"}, ["`strategy.name`", "'fedprllm'", "'fedavg'"]),
        ({"strategy__min_clients": 0}, ["`strategy.min_clients`", "at least 1"]),
        ({"strategy__timeout": 0}, ["`strategy.timeout`", "above 0"]),
        ({"strategy__rejoin": -1.0}, ["`strategy.rejoin`", "at least 0"]),
        ({"strategy__wait": -1.0}, ["`strategy.wait`", "at least 0"]),
        ({"strategy__window": 0}, ["`strategy.window`", "at least 1"]),
        ({"strategy__group": "output"}, ["`strategy.group`", "'layer', 'row', 'column'"]),
        ({"strategy__ties": "rnd"}, ["`strategy.ties`", "'magnitude', 'index', 'random'"]),
        ({"strategy__scaling": 1}, ["`strategy.scaling`", "true or false"]),
        ({"strategy__client_weights": "x"}, ["`strategy.client_weights`", "'samples', 'tokens'"]),
        ({"strategy__fraction": 0}, ["`strategy.fraction`", "above 0 and at most 1"]),
        ({"strategy__fraction": 1.01}, ["`strategy.fraction`", "got 1.01"]),
        (
            {"schedule__name": "iterative", "schedule__blocks_per_message": 2},
            ["null or 1", "got 2"],
        ),
        ({"allocation__name": "per_block"}, ["`allocation.blocks`", "allocation=uniform"]),
        ({"allocation__blocks": "0.5"}, ["`allocation.blocks`", "allocation=per_block"]),
        ({"allocation__blocks": "0.5,1.0"}, ["`allocation.blocks`", "below 1", "'0.5,1.0'"]),
        ({"allocation__blocks": "0.5,"}, ["`allocation.blocks`", "separated by commas"]),
        (
            {"allocation__name": "per_block", "allocation__blocks": "0.5,0.6"},
            ["`sparsity` 0.5", "got 0.55", "Set sparsity=0.55"],
        ),
        (
            {
                "allocation__name": "per_block",
                "allocation__blocks": "0.4,0.6",
                "pruner__pattern": "2:4",
            },
            ["`allocation.name`", "'uniform'", "pruner.pattern=unstructured"],
        ),
        ({"federation__backend": "local"}, ["`federation.backend`", "'ray', 'inline'"]),
        ({"schedule__name": "oneshot"}, ["`schedule.name`", "Did you mean 'one_shot'"]),
        ({"schedule__blocks_per_message": 0}, ["`schedule.blocks_per_message`", "at least 1"]),
        ({"evaluation__seq_len": 1}, ["`evaluation.seq_len`", "at least 2"]),
        ({"evaluation__max_windows": 0}, ["`evaluation.max_windows`", "at least 1"]),
        ({"evaluation__local_only": 1}, ["`evaluation.local_only`", "true or false", "got 1"]),
        ({"federation__num_clients": 0}, ["`federation.num_clients`", "at least 1", "got 0"]),
        ({"federation__client_cpus": 0.5}, ["`federation.client_cpus`", "a whole number"]),
        ({"federation__client_gpus": -1}, ["`federation.client_gpus`", "at least 0"]),
        ({"spasity": 0.5}, ["'spasity'", "not a configuration key", "Did you mean 'sparsity'"]),
        ({"pruner__seqlen": 5}, ["'pruner.seqlen'", "Did you mean 'pruner.seq_len'"]),
    ],
)
def test_each_problem_names_key_value_and_expectation(values, words):
    message = problem(**values)
    for word in words:
        assert word in message


@pytest.mark.parametrize("pattern", ["1:4", "2:3", "3:4", "1:8"])
def test_a_pattern_tells_its_sparsity_and_that_one_is_accepted(pattern):
    n, m = map(int, pattern.split(":"))
    message = problem(pruner__pattern=pattern)
    told = float(message.partition("Set sparsity=")[2].partition(",")[0])
    assert told == pytest.approx(1 - n / m, abs=1e-6)
    config = checked(changed(pruner__pattern=pattern, sparsity=told))
    assert config.pruner.pattern == Pattern(n, m)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "unstructured"])
def test_half_sparse_patterns_fit_the_default(pattern):
    assert str(checked(changed(pruner__pattern=pattern)).pruner.pattern) == pattern


def test_all_problems_come_at_once():
    message = problem(sparsity=2, seed="x", pruner__name="wnada", typo=1, data__path="/x")
    assert message.startswith("The configuration has 5 problems:")
    for key in ("`sparsity`", "`seed`", "`pruner.name`", "'typo'", "`data.path`"):
        assert key in message


def test_missing_keys_are_named_one_by_one():
    data = changed()
    del data["seed"], data["pruner"]["seq_len"], data["model"]
    with pytest.raises(ConfigError) as caught:
        checked(data)
    for key in ("`seed`", "`pruner.seq_len`", "`model.name`", "`model.dtype`"):
        assert f"{key} is missing" in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_anything_but_a_mapping_is_one_problem(data):
    with pytest.raises(ConfigError, match="^The configuration must be a mapping"):
        checked(data)


def test_keys_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match="'1' is not a configuration key"):
        checked(changed() | {1: 2})


def test_thousands_of_problems_make_a_short_message():
    with pytest.raises(ConfigError, match="and 400 more") as caught:
        checked(changed() | {f"zz{number}": 1 for number in range(500)})
    assert len(str(caught.value)) < 20_000


def test_numbers_become_floats_where_floats_are_meant():
    config = checked(changed(sparsity=0, strategy__timeout=60))
    assert (type(config.sparsity), type(config.strategy.timeout)) == (float, float)


def test_every_number_and_name_has_a_rule_and_no_default():
    for key, field in all_keys().items():
        kind, _, choices = value_type(field)
        if kind in (int, float):
            assert choices or bounds(field), key
        if kind is str and key.endswith(".name"):
            assert choices or field.metadata, key
        assert field.is_required(), f"{key}: its default stands in conf/, once"


def test_long_values_are_shortened():
    assert len(problem(model__dtype="x" * 50_000)) < 1_000
    assert len(problem(seed=list(range(50_000)))) < 1_000


def test_the_network_s_text_meets_the_same_checks():
    text = to_yaml(compose_config({})).replace("sparsity: 0.5", "sparsity: 1.5")
    with pytest.raises(ConfigError, match="`sparsity` must be at least 0"):
        from_yaml(text)
