"""Sums with noise: what one sample can change, what the server makes of them, what is refused."""

import dataclasses

import numpy as np
import pytest

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, ReplyRefusedError, WireError
from fedprune.methods import noisy
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.limited import ClippedKind, Plan, Shortener
from fedprune.methods.noisy import NoisyExchange, estimate
from fedprune.methods.public_text import PublicText, public_statistics, token_inputs
from fedprune.methods.registry import exchanges, main_exchange
from fedprune.models.device import Limits
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.statistics import get_kind, shared_inputs
from fedprune.wire.arrays import decode_arrays, encode_arrays
from tests.support.architectures import tiny_model, token_samples
from tests.support.statistics import public

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
pytest.importorskip("opendp", reason="opendp is not installed")

SEQ_LEN = 12
FIRST = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}


def config_of(*overrides: str):
    return config_from_overrides(
        [
            "strategy=fedstats",
            "schedule.prefix=dense",
            "evaluation.local_only=false",
            f"pruner.seq_len={SEQ_LEN}",
            "privacy.epsilon=8",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def loaded():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def model(loaded):
    samples = token_samples(16, SEQ_LEN, seed=7)
    config, columns = config_of(), get_kind("columns")
    text = PublicText(
        tuple(samples), public_statistics(loaded, samples, [columns], config), token_inputs(loaded)
    )
    return dataclasses.replace(public(loaded), public=text)


def answers(loaded, model, exchange, samples) -> list[bytes]:
    walk, found = BlockWalk(loaded, samples), []
    for block in walk.dense_blocks():
        exchange.hear(walk, exchange.told(model, block))
        found.append(exchange.answer(walk, BlockSpec(0.5, "unstructured", "row"), False).payload)
    return found


def test_nothing_is_sent_of_inputs_that_tell_words(loaded, model):
    assert token_inputs(loaded) == FIRST
    kinds = main_exchange(config_of()).summed
    plan = Plan.of(kinds, model)
    assert plan == Plan.here(kinds, loaded)
    assert not {name for linears in plan.sent(0) for name in linears} & FIRST
    assert {name for linears in plan.sent(1) for name in linears} > FIRST
    found = answers(loaded, model, main_exchange(config_of()), token_samples(1, SEQ_LEN))
    told = [decode_arrays(data, plan.specs(block, "int64")) for block, data in enumerate(found)]
    assert [any("q_proj" in name for name in block) for block in told] == [False, True, True]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_do_not_hide_which_inputs_are_of_one_token(family):
    names = token_inputs(tiny_model(family))
    assert names and all("attn" in name for name in names)


def test_parallel_blocks_have_more_of_them():
    names = token_inputs(tiny_model("falcon"))
    assert {"self_attention.query_key_value", "mlp.dense_h_to_4h"} <= names


def closed(model, exchange, block, payloads):
    sums = exchange.aggregator(BlockTask(model, block))
    for number, data in enumerate(payloads):
        client = Contributor(f"client {number}", 1, 0)
        sums.add(sums.check(data, client), client)
    return sums.close()


def test_with_all_but_no_noise_the_masks_are_those_of_plain_sums(loaded, model, monkeypatch):
    monkeypatch.setattr(noisy, "discrete_gaussian", lambda n, width: np.zeros(n, dtype=np.int64))
    exchange = main_exchange(config_of("privacy.clip=100", "privacy.epsilon=100"))
    plain = exchange.inner
    samples = token_samples(8, SEQ_LEN)
    payloads = [answers(loaded, model, exchange, part) for part in (samples[:4], samples[4:])]
    monkeypatch.setattr(noisy, "estimate", lambda sums, deviation, expected=None: sums)
    walk = BlockWalk(loaded, samples)
    for block in range(model.num_blocks):
        known = plain.answer(walk, BlockSpec(0.5, "unstructured", "row"), False).payload
        task = BlockTask(model, block)
        whole = plain.aggregator(task)
        whole.add(whole.check(known, Contributor("all")), Contributor("all"))
        expected = whole.close().masks
        found = closed(model, exchange, block, [one[block] for one in payloads])
        assert found.voters == 2
        for name, mask in found.masks.items():
            if block or name not in FIRST:
                same = (mask.to_bool() == expected[name].to_bool()).mean()
                assert same > 0.995  # what is below a unit is cut off
        if block + 1 < model.num_blocks:
            walk.advance({})


def test_the_first_input_is_public_texts_whoever_answers(loaded, model):
    exchange = main_exchange(config_of())
    masks = [
        closed(model, exchange, 0, [answers(loaded, model, exchange, samples)[0]]).masks
        for samples in (token_samples(2, SEQ_LEN, seed=1), token_samples(2, SEQ_LEN, seed=2))
    ]
    for name in FIRST:
        assert np.array_equal(masks[0][name].to_bool(), masks[1][name].to_bool())


def test_sums_that_no_samples_and_no_noise_can_be_are_refused(loaded, model):
    exchange = main_exchange(config_of())
    sums, plan = exchange.aggregator(BlockTask(model, 1)), Plan.of(exchange.summed, model)
    specs = plan.specs(1, "int64")
    huge = {name: np.full(spec.shape, 1 << 40) for name, spec in specs.items()}
    client = Contributor("loud", 1, 2 * SEQ_LEN)
    with pytest.raises(WireError, match="beyond what its samples"):
        sums.check(encode_arrays(huge), client)
    with pytest.raises(WireError, match="beyond what its samples"):
        sums.check(encode_arrays({name: -array for name, array in huge.items()}), client)
    with pytest.raises(WireError):
        sums.check(encode_arrays({name: a.astype(np.float32) for name, a in huge.items()}), client)


def test_samples_that_do_not_run_alone_are_refused(loaded, model):
    exchange = main_exchange(config_of())
    walk = BlockWalk(loaded, token_samples(4, SEQ_LEN), limits=Limits(2))
    exchange.hear(walk, exchange.told(model, 0))
    with pytest.raises(ReplyRefusedError, match="alone"):
        exchange.answer(walk, BlockSpec(0.5, "unstructured", "row"), False)


def test_an_estimate_is_the_sums_where_they_stand_out_and_their_mean_where_not():
    sums = np.array([10.0, 20.0, 30.0, 40.0])
    assert np.allclose(estimate(sums, 1e-6), sums)
    assert np.allclose(estimate(sums, 1e6), np.full(4, 5e5))  # of what noise could be
    found = estimate(np.array([-50.0, 1.0, 2.0, 100.0]), 5.0)
    assert found.min() >= 0


def test_local_prefixes_and_surveys_are_refused():
    with pytest.raises(ConfigError, match=r"schedule\.prefix=dense"):
        main_exchange(config_of("schedule.prefix=local"))
    with pytest.raises(ConfigError, match="part of the same promise"):
        exchanges(config_of("allocation=owl"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("strategy.pooling=clients", "strategy.pooling"),
        ("data.sampling=published", "data.sampling"),
        ("evaluation.local_only=true", "evaluation.local_only"),
        ("evaluation.federated=true", "evaluation.federated"),
        ("privacy.first_input=own", "privacy.first_input"),
    ],
)
def test_what_does_not_go_with_a_guarantee_is_named(override, key):
    with pytest.raises(ConfigError, match=key):
        config_of(override)


def test_a_record_that_is_told_no_input_keeps_nothing(loaded):
    nothing = Shortener(Plan.here([get_kind("columns")], loaded), 0, {}, 1.0)
    kind = ClippedKind(get_kind("columns"), nothing)
    walk = BlockWalk(loaded, token_samples(1, SEQ_LEN))
    for _, sums in shared_inputs(walk.observe([kind]).linears["columns"]):
        assert not sums.totals.any()
    with pytest.raises(RuntimeError):
        kind.arrays(sums)


def test_an_exchange_without_epsilon_is_itself():
    assert not isinstance(main_exchange(config_of("privacy.epsilon=null")), NoisyExchange)
