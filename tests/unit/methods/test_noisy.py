"""Sums with noise: what one sample can change, what the server makes of them, what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, ReplyRefusedError, WireError
from fedprune.methods import noisy
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.limited import ClippedKind, Plan, Shortener
from fedprune.methods.noisy import NoisyExchange, estimate, guarantee
from fedprune.methods.public_text import PublicText, public_statistics, token_inputs
from fedprune.methods.registry import main_exchange
from fedprune.privacy.noise import NORM_BITS, part_norm, unit
from fedprune.pruning.blocks import BlockWalk, Observed
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
        tuple(samples),
        public_statistics(loaded, samples, [columns], config),
        token_inputs(loaded),
    )
    return dataclasses.replace(public(loaded), public=text)


def answers(loaded, model, exchange, samples) -> list[bytes]:
    walk, found = BlockWalk(loaded, samples), []
    while walk.blocks_left:
        exchange.hear(walk, exchange.told(model, walk.position))
        found.append(exchange.answer(walk, BlockSpec(0.5, "unstructured", "row"), False).payload)
        if walk.blocks_left == 1:
            return found
        walk.advance({})
    return found


def without_noise(monkeypatch) -> None:
    monkeypatch.setattr(noisy, "discrete_gaussian", lambda n, width: np.zeros(n, dtype=np.int64))


def totals(loaded, model, exchange, samples) -> list[dict[str, np.ndarray]]:
    plan = Plan.of(exchange.summed, model)
    found = answers(loaded, model, exchange, samples)
    return [decode_arrays(data, plan.specs(block, "int64")) for block, data in enumerate(found)]


def oracle(loaded, model, exchange, samples) -> list[dict[str, np.ndarray]]:
    """Each sample by itself through the plain model, every number by hand."""
    plan, config = Plan.of(exchange.summed, model), exchange.config
    found = [
        {share.key: np.zeros(share.count, dtype=np.int64) for share in plan.shares[b]}
        for b in range(model.num_blocks)
    ]
    for sample in samples:
        seen: dict[tuple[int, str], torch.Tensor] = {}
        handles = []
        for block in range(model.num_blocks):
            for name, ref in loaded.layout.linears(block).items():

                def keep(_module, args, key=(block, name), seen=seen):
                    seen[key] = args[0].detach().double().reshape(-1, args[0].shape[-1])

                handles.append(ref.module.register_forward_pre_hook(keep))
        with torch.no_grad():
            loaded.model(sample[None])
        for handle in handles:
            handle.remove()
        for block in range(model.num_blocks):
            for share in plan.shares[block]:
                rows = seen[block, share.linears[0]]
                vector = [float((rows[:, j] ** 2).sum()) for j in range(rows.shape[1])]
                vector.append(float(len(rows)))
                scale = exchange.scale(model, block, share)
                units = [
                    v / float(s) * unit(plan.total, config.privacy.clip)
                    for v, s in zip(vector, scale, strict=True)
                ]
                most = part_norm(len(units), plan.total)
                length = math.sqrt(sum(u * u for u in units))
                shrink = min(1.0, most / length)
                found[block][share.key] += np.array([int(u * shrink) for u in units])
    return found


@pytest.mark.parametrize("clip", [0.5, 1.5, 50])
def test_each_sample_adds_its_own_shortened_vector(loaded, model, monkeypatch, clip):
    without_noise(monkeypatch)
    exchange = main_exchange(config_of(f"privacy.clip={clip}"))
    samples = token_samples(3, SEQ_LEN)
    expected = oracle(loaded, model, exchange, samples)
    for block, found in enumerate(totals(loaded, model, exchange, samples)):
        assert set(found) == set(expected[block])
        for name, sums in found.items():
            true = expected[block][name]
            # float32 sums of 12 squares, then whole numbers: an ulp of 24 bits and one unit each.
            assert np.abs(sums - true).max() <= 3 + np.abs(true).max() * 3e-6


def _length(first, second) -> int:
    """The squared length of what two clients' answers differ by, in exact integers."""
    return sum(
        sum(int(d) ** 2 for d in one[name] - other[name])
        for one, other in zip(first, second, strict=True)
        for name in one
    )


def test_a_sample_however_loud_moves_all_sums_by_its_length_at_most(loaded, model, monkeypatch):
    without_noise(monkeypatch)
    samples = token_samples(3, SEQ_LEN)
    # Public text a thousand times as quiet: so every sample is far too loud.
    quiet = dataclasses.replace(
        model.public,
        observed=tuple(
            Observed(
                {
                    "columns": {
                        name: get_kind("columns").rounded(_shrunk(found), found.tokens, "cpu")
                        for name, found in block.linears["columns"].items()
                    }
                }
            )
            for block in model.public.observed
        ),
    )
    told = dataclasses.replace(model, public=quiet)
    exchange = main_exchange(config_of())
    some = totals(loaded, told, exchange, samples[:2])
    every = totals(loaded, told, exchange, samples)
    moved = _length(every, some)
    assert moved <= 1 << 2 * NORM_BITS
    assert moved > 0.9 * (1 << 2 * NORM_BITS)  # loud enough to use all of it
    other = totals(loaded, told, exchange, [*samples[:2], token_samples(1, SEQ_LEN, seed=9)[0]])
    assert _length(every, other) <= 2 << 2 * NORM_BITS  # none is negative


def _shrunk(found):
    from fedprune.wire.sums import ExactSums

    sums = ExactSums(found.sums.numel())
    sums.add((found.sums / 1e6).numpy())
    return sums


def test_noise_of_an_answer_has_the_width_that_was_told(loaded, model):
    exchange = main_exchange(config_of())
    samples = token_samples(1, SEQ_LEN)
    first, second = (totals(loaded, model, exchange, samples) for _ in range(2))
    apart = np.concatenate(
        [
            (one[name] - other[name])
            for one, other in zip(first, second, strict=True)
            for name in one
        ]
    ).astype(float)
    width = guarantee(exchange.config).multiplier * (1 << NORM_BITS)
    # Eight standard deviations of a mean square of hundreds: once in 10**11 runs.
    off = abs(np.square(apart).mean() / (2 * width**2) - 1)
    assert off < 8 * math.sqrt(2 / len(apart))


def test_nothing_is_sent_of_inputs_that_tell_words(loaded, model):
    assert token_inputs(loaded) == FIRST
    kinds = main_exchange(config_of()).summed
    plan = Plan.of(kinds, model)
    assert plan == Plan.here(kinds, loaded)
    assert not {name for linears in plan.sent(0) for name in linears} & FIRST
    assert {name for linears in plan.sent(1) for name in linears} > FIRST
    found = totals(loaded, model, main_exchange(config_of()), token_samples(1, SEQ_LEN))
    assert not any("self_attn.q_proj" in name for name in found[0])
    assert any("self_attn.q_proj" in name for name in found[1])


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_do_not_hide_which_inputs_are_of_one_token(family):
    names = token_inputs(tiny_model(family))
    assert names and all("attn" in name for name in names)


def test_parallel_blocks_have_more_of_them():
    names = token_inputs(tiny_model("falcon"))
    assert {"self_attention.query_key_value", "mlp.dense_h_to_4h"} <= names


def closed(model, exchange, block, payloads, whole=False):
    task = BlockTask(model, block)
    sums = exchange.aggregator(task)
    clients = [Contributor(f"client {n}", 1, 0) for n in range(len(payloads))]
    checked = [sums.check(data, one) for data, one in zip(payloads, clients, strict=True)]
    if whole:
        words = [sums.words(a, c, len(clients)) for a, c in zip(checked, clients, strict=True)]
        total = {name: sum(one[name] for one in words) for name in sums.layout(len(clients))}
        sums.add_total(total, clients)
    else:
        for answer, client in zip(checked, clients, strict=True):
            sums.add(answer, client)
    return sums


def test_with_all_but_no_noise_the_masks_are_those_of_plain_sums(loaded, model, monkeypatch):
    without_noise(monkeypatch)
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
        found = closed(model, exchange, block, [one[block] for one in payloads]).close()
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
        closed(model, exchange, 0, [answers(loaded, model, exchange, samples)[0]]).close().masks
        for samples in (token_samples(2, SEQ_LEN, seed=1), token_samples(2, SEQ_LEN, seed=2))
    ]
    for name in FIRST:
        assert np.array_equal(masks[0][name].to_bool(), masks[1][name].to_bool())


def test_words_add_up_to_what_answers_do(loaded, model):
    exchange = main_exchange(config_of())
    payloads = [
        answers(loaded, model, exchange, token_samples(1, SEQ_LEN, seed=n))[1] for n in range(3)
    ]
    one, other = (closed(model, exchange, 1, payloads, whole) for whole in (False, True))
    for name, sums in one.state().items():
        assert np.array_equal(sums, other.state()[name])
    assert one.clients == other.clients == 3


def test_sums_go_on_from_their_state(loaded, model):
    exchange = main_exchange(config_of())
    payload = answers(loaded, model, exchange, token_samples(1, SEQ_LEN))[1]
    sums = closed(model, exchange, 1, [payload])
    again = exchange.aggregator(BlockTask(model, 1))
    again.restore(sums.state())
    assert all(np.array_equal(sums.state()[n], again.state()[n]) for n in sums.state())
    with pytest.raises(KeyError):
        exchange.aggregator(BlockTask(model, 1)).restore({"other": np.zeros(1)})


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


def test_a_scale_that_cannot_be_one_is_refused(loaded, model):
    exchange = main_exchange(config_of())
    walk = BlockWalk(loaded, token_samples(1, SEQ_LEN))
    dense = BlockSpec(0.5, "unstructured", "row")
    with pytest.raises(ReplyRefusedError, match="no scale of block 0"):
        exchange.answer(walk, dense, False)
    specs = Plan.of(exchange.summed, model).specs(0, "float32")
    for bad in (0.0, -1.0, math.nan, math.inf):
        wrong = {name: np.full(spec.shape, bad, dtype=np.float32) for name, spec in specs.items()}
        exchange.hear(walk, encode_arrays(wrong))
        with pytest.raises(ReplyRefusedError, match="finite and above 0"):
            exchange.answer(walk, dense, False)
    exchange.hear(walk, b"nothing")
    with pytest.raises(ReplyRefusedError, match="scale of block 0"):
        exchange.answer(walk, dense, False)


def test_samples_that_do_not_run_alone_are_refused(loaded, model):
    from fedprune.models.device import Limits

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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=fedprllm"], "has no limit"),
        (["strategy=fedspallm"], "has no limit"),
        (["strategy=fedhessian", "pruner=sparsegpt"], "has no limit"),
    ],
)
def test_what_has_no_limit_is_refused_with_the_way_out(overrides, words):
    config = config_of(*overrides)
    with pytest.raises(ConfigError, match=words) as caught:
        main_exchange(config)
    assert "strategy=fedstats" in str(caught.value)


def test_local_prefixes_and_surveys_are_refused():
    with pytest.raises(ConfigError, match=r"schedule\.prefix=dense"):
        main_exchange(config_of("schedule.prefix=local"))
    from fedprune.methods.registry import exchanges

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
