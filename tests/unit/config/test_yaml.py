"""YAML round trips exactly, and hostile YAML is refused."""

import shlex
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config import (
    Pattern,
    compose_config,
    config_from_overrides,
    from_earlier_yaml,
    from_yaml,
    replace,
    to_overrides,
    to_yaml,
)
from fedprune.config.validation import MAX_CHARACTERS
from fedprune.errors import ConfigError

DEFAULT = compose_config({})

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40),
    st.text("aA1 ='\"\\${}[](),:;#&*!|>%@`~-?\u2028\ufeff\u00e9", min_size=1, max_size=30),
    st.sampled_from(
        ["null", "true", "1e5", "0x1f", "1:30", "2001-01-01", "~", "???", "${seed}", "\\${seed}"]
        + ["12345678", "1_000", "- a", "key: value", " padded ", "'", "\\", "\\\\'", "a,b", "[1"]
    ),
)
positive = st.floats(0, 1e300, exclude_min=True)


@st.composite
def configs(draw):
    n = draw(st.integers(1, 16))
    pattern = draw(st.sampled_from([Pattern(), Pattern(n, 2 * n)]))
    fractions = st.floats(0, 1, exclude_max=True)
    return replace(
        DEFAULT,
        sparsity=0.5 if pattern.structured else draw(fractions),
        seed=draw(st.integers(0, 2**63 - 1)),
        output_dir=draw(texts),
        model=replace(DEFAULT.model, name="hf", path=draw(texts), revision=draw(texts)),
        data=replace(
            DEFAULT.data,
            source="files",
            path=draw(texts),
            text_key=draw(texts),
            heldout_path=draw(st.none() | texts),
            heldout_fraction=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
            max_documents=draw(st.none() | st.integers(1, 2**40)),
        ),
        pruner=replace(DEFAULT.pruner, pattern=pattern, seq_len=draw(st.integers(2, 2**31))),
        strategy=replace(DEFAULT.strategy, timeout=draw(positive), wait=draw(positive)),
        federation=replace(DEFAULT.federation, client_gpus=draw(positive)),
    )


@settings(max_examples=150, deadline=None)
@given(configs())
def test_yaml_round_trip_is_exact(config):
    assert from_yaml(to_yaml(config)) == config


@settings(max_examples=12, deadline=None)
@given(configs())
def test_overrides_compose_to_the_same_configuration(config):
    assert compose_config({"overrides": shlex.join(to_overrides(config))}) == config


def test_yaml_round_trip_keeps_types():
    config = from_yaml(to_yaml(replace(DEFAULT, sparsity=0.0)))
    assert type(config.sparsity) is float
    assert "pattern: '2:4'" in to_yaml(
        replace(DEFAULT, pruner=replace(DEFAULT.pruner, pattern=Pattern(2, 4)))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("seed: [", "must be YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "must be YAML"),
        ("a: &x [1, 1]\nb: [*x, *x]", "has aliases"),
        ("[" * 30_000, "nested too deep"),
        ("- " * 15_000, "nested too deep"),
        ("a: {" * 8_000, "nested too deep"),
        ("seed: 0x" + "f" * 30_000, "64 bits"),
        ("seed: " + "9" * 30_000, "must be YAML"),
        ("2001-11-12: 1", "is not a configuration key"),
        ("strategy.group: 1", "is not a configuration key"),
        ("model: {dtype: [0x" + "f" * 9_000 + "]}", "`model.dtype` must be one of"),
        ("strategy: {timeout: [0x" + "f" * 9_000 + "]}", "`strategy.timeout` must be a number"),
        ("strategy: [1]", "`strategy` must be a mapping"),
        ("strategy: {name: 1}", "`strategy.name` must be text"),
        ("strategy: {name: [fedstats], group: row}", "`strategy.name` must be text"),
        ("pruner: {name: {a: 1}}", "`pruner.name` must be text"),
        ("data: {source: null, split: x}", "`data.source` must be one of"),
        ("seed: 2001-99-99", "must be YAML"),
        ("? [1, 2]\n: 3", "must be YAML"),
        ("a: \x00", "must be YAML"),
        ("#" * (MAX_CHARACTERS + 1), "at most 32768 characters"),
    ],
)
def test_hostile_text_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        from_yaml(text)


def test_interpolation_is_plain_text():
    text = to_yaml(replace(DEFAULT, output_dir="${oc.env:HOME}"))
    assert from_yaml(text).output_dir == "${oc.env:HOME}"
    with pytest.raises(ConfigError, match="`seed` must be a whole number"):
        from_yaml(to_yaml(DEFAULT).replace("seed: 0", "seed: ${oc.decode:7}"))


def test_a_node_reads_its_configuration_without_hydra():
    code = (
        "import sys; from fedprune.config import from_yaml; from_yaml(sys.stdin.read()); "
        "assert not {'hydra', 'omegaconf', 'torch', 'flwr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], input=to_yaml(DEFAULT), text=True, check=True)


def test_a_configuration_of_an_earlier_release_gets_the_defaults_of_later_keys():
    config = config_from_overrides(
        ["strategy=collect", "seed=7", r"card.data_description='a \${x}'"]
    )
    text = to_yaml(config)
    assert from_earlier_yaml(text) == config == from_yaml(text)
    plain = yaml.safe_load(text)
    del plain["tracking"], plain["evaluation"]["tasks"]
    assert from_earlier_yaml(yaml.safe_dump(plain)) == config
    with pytest.raises(ConfigError, match="is missing"):
        from_yaml(yaml.safe_dump(plain))
    plain["pruner"]["gone"] = 3
    with pytest.raises(ConfigError, match=r"'pruner\.gone' is not a configuration key"):
        from_earlier_yaml(yaml.safe_dump(plain))
    for text in ("[]", "a: &x 1\nb: *x", "7"):
        with pytest.raises(ConfigError):
            from_earlier_yaml(text)
