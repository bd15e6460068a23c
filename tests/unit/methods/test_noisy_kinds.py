"""Noise on every sum that is small enough: experts, cosines, collected columns, several at once."""

import dataclasses
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, ReplyRefusedError, WireError
from fedprune.methods import noisy
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.limited import ClippedBlock, Plan, Shortener
from fedprune.methods.merging import _weakest
from fedprune.methods.noisy import NoisyExchange, NoisySums, estimate, guarantee
from fedprune.methods.public_text import PublicText, public_statistics, token_inputs
from fedprune.methods.registry import get_method, main_exchange, method_names
from fedprune.privacy.noise import NORM_BITS, unit
from fedprune.pruning.block_kinds import BlockSite
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.cosines import UNIT, Cosines
from fedprune.pruning.experts import ExpertSums
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.statistics import get_kind
from fedprune.wire.arrays import decode_arrays, encode_arrays
from tests.support.architectures import VOCABULARY, made_of, tiny_config, tiny_model, token_samples
from tests.support.statistics import public

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
pytest.importorskip("opendp", reason="opendp is not installed")

SEQ_LEN = 12
DENSE = BlockSpec(0.0, "unstructured", "row")
CASES = {
    "experts": ("mixtral", ["strategy=fedexperts", "sparsity=0.5"]),
    "cosines": ("llama", ["strategy=depth", "strategy.repair=false", "strategy.remove=1"]),
    "rows of blocks": ("gpt2", ["strategy=depth", "strategy.repair=false", "strategy.remove=2"]),
    "columns": ("llama", ["strategy=collect"]),
    "all at once": (
        "mixtral",
        ["strategy=collect", "strategy.statistics='columns,cosines,experts'"],
    ),
}


def config_of(*overrides):
    fixed = ["evaluation.local_only=false", f"pruner.seq_len={SEQ_LEN}", "privacy.epsilon=8"]
    return config_from_overrides([*fixed, *overrides])


@dataclasses.dataclass
class Case:
    loaded: object
    model: object
    overrides: list[str]

    def exchange(self, *overrides):
        return main_exchange(config_of(*self.overrides, *overrides))


_MADE: dict[str, Case] = {}


@pytest.fixture(params=CASES)
def case(request):
    family, overrides = CASES[request.param]
    if request.param not in _MADE:
        loaded = deeper(family)
        exchange = main_exchange(config_of(*overrides))
        samples = token_samples(16, SEQ_LEN, seed=7)
        observed = public_statistics(loaded, samples, exchange.summed, exchange.config)
        text = PublicText(tuple(samples), observed, token_inputs(loaded))
        model = dataclasses.replace(public(loaded), public=text)
        _MADE[request.param] = Case(loaded, model, overrides)
    return _MADE[request.param]


def deeper(family):
    config = tiny_config(family)
    blocks = "n_layer" if family == "gpt2" else "num_hidden_layers"
    setattr(config, blocks, 4)
    return made_of(config)


def sums_of(case, exchange, samples):
    """Block -> key of the share -> what a client with these samples sends."""
    walk, found, plan = BlockWalk(case.loaded, samples), [], exchange.plan(case.model)
    for block in walk.dense_blocks():
        exchange.hear(walk, exchange.told(case.model, block))
        data = exchange.answer(walk, DENSE, False).payload
        found.append(decode_arrays(data, plan.specs(block, "int64")))
    return found


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(noisy, "discrete_gaussian", lambda n, width: np.zeros(n, dtype=np.int64))


def numbers_of(case, exchange, sample):
    """Block -> key -> a sample's numbers, from the plain statistics of the sample by itself."""
    walk, kept, found = BlockWalk(case.loaded, [sample]), {}, []
    inputs = [kind for kind in exchange.summed if kind.name == "columns"]
    blocks = [kind for kind in exchange.summed if kind.name != "columns"]
    for _ in walk.dense_blocks():
        observed = walk.observe(inputs, blocks, kept)
        here = {}
        for name, known in observed.linears.get("columns", {}).items():
            here[f"columns/{name}"] = [*known.sums.tolist(), known.tokens]
        for name, array in observed.block.get("experts", {}).items():
            here[f"experts/{name}"] = array.tolist()
        if "cosines" in observed.block:
            arrays = observed.block["cosines"]
            spans = next(k for k in blocks if k.name == "cosines").spans(case.model.num_blocks)
            for span, total, tokens in zip(spans, arrays["sums"], arrays["tokens"], strict=True):
                here[f"cosines/over_{span}"] = [int(tokens) * UNIT - int(total)]
        found.append(here)
    return found


def by_hand(case, exchange, samples):
    """The formula, number by number: measured, shortened with its share, cut to whole units."""
    plan = exchange.plan(case.model)
    total = sum(share.count for block in plan.shares for share in block)
    found = [defaultdict(lambda: 0) for _ in plan.shares]
    spread = (1 << NORM_BITS) / (exchange.config.privacy.clip * math.sqrt(total))
    for sample in samples:
        for block, numbers in enumerate(numbers_of(case, exchange, sample)):
            for share in plan.shares[block]:
                scale = exchange.scale(case.model, block, share).astype(float)
                parts = zip(numbers[share.key], scale, strict=True)
                units = [float(number) / float(one) * spread for number, one in parts]
                most = math.isqrt((1 << 2 * NORM_BITS) * share.count // total)
                length = math.sqrt(sum(u * u for u in units))
                shrink = min(1.0, most / length) if length else 1.0
                found[block][share.key] += np.array([math.floor(u * shrink) for u in units])
    return found


@pytest.mark.parametrize("clip", [0.3, 1.5, 30])
def test_a_sample_among_others_adds_what_it_adds_alone(case, quiet, clip):
    exchange = case.exchange(f"privacy.clip={clip}")
    samples = token_samples(3, SEQ_LEN)
    expected = by_hand(case, exchange, samples)
    every = sums_of(case, exchange, samples)
    single = [sums_of(case, exchange, [sample]) for sample in samples]
    assert sum(map(len, every)) > 0
    for block, found in enumerate(every):
        for key, sums in found.items():
            alone = sum(one[block][key] for one in single)
            # Statistics of a block are integers: the same to the bit. Columns are sums in float32.
            rounding = 3 + np.abs(alone).max() * 3e-6 if key.startswith("columns") else 0
            assert np.abs(sums - alone).max() <= rounding, key
            assert np.abs(sums - expected[block][key]).max() <= 3 + np.abs(sums).max() * 3e-6, key


def hostile():
    """Documents that somebody writes to stand out."""
    yield torch.full((SEQ_LEN,), 5)  # one word: all tokens take the same way
    yield torch.arange(3, 3 + SEQ_LEN)
    yield torch.tensor([3, VOCABULARY - 1] * (SEQ_LEN // 2))
    yield torch.full((SEQ_LEN,), VOCABULARY - 1)
    yield from token_samples(4, SEQ_LEN, seed=99)


def moved(first, second):
    """The squared length of what two answers differ by, in exact integers."""
    return sum(
        int(d) ** 2
        for one, other in zip(first, second, strict=True)
        for key in one
        for d in (one[key] - other[key]).tolist()
    )


@pytest.mark.parametrize("loud", [1.0, 1e-6])
def test_no_document_moves_the_sums_by_more_than_one_length(case, quiet, monkeypatch, loud):
    scale = NoisyExchange.scale
    monkeypatch.setattr(
        NoisyExchange, "scale", lambda *told: (scale(*told) * loud).astype(np.float32)
    )
    exchange, samples = case.exchange(), token_samples(2, SEQ_LEN)
    without, most = sums_of(case, exchange, samples), 0
    for document in hostile():
        with_it = sums_of(case, exchange, [*samples, document])
        most = max(most, moved(with_it, without))
        assert most <= 1 << 2 * NORM_BITS
        instead = sums_of(case, exchange, [samples[0], document])
        assert moved(instead, without) <= 2 << 2 * NORM_BITS  # none is negative
    if loud < 1:  # a server that says that all are loud gains nothing, and the limit is reached
        assert most > 0.8 * (1 << 2 * NORM_BITS)


def test_the_noise_is_as_wide_as_the_accountant_asks(case):
    exchange = case.exchange()
    samples, apart = token_samples(1, SEQ_LEN), []
    while len(apart) < 400:
        one, other = (sums_of(case, exchange, samples) for _ in range(2))
        for block, found in enumerate(one):
            apart += [d for key, sums in found.items() for d in (sums - other[block][key]).tolist()]
    width = guarantee(exchange.config).multiplier * (1 << NORM_BITS)
    square = np.square(np.array(apart, dtype=float)).mean() / (2 * width**2)
    # Of 400 numbers and more the mean square is within 6.5 standard deviations but once in 10**8
    # times: of chi squared the upper tail is the longer one, and this is beyond it (see below).
    assert abs(square - 1) < 6.5 * math.sqrt(2 / len(apart))


def test_that_bound_fails_less_than_once_in_a_million_runs():
    from scipy.stats import chi2

    for count in (400, 1000, 10_000):
        off = 6.5 * math.sqrt(2 / count)
        chance = chi2.sf(count * (1 + off), count) + chi2.cdf(count * (1 - off), count)
        assert chance < 1e-6


def closed(case, exchange, block, answers, tokens=SEQ_LEN):
    sums = exchange.aggregator(BlockTask(case.model, block))
    assert isinstance(sums, NoisySums)
    for number, answer in enumerate(answers):
        client = Contributor(f"client {number}", 1, tokens)
        sums.add(sums.check(encode_arrays(answer), client), client)
    return sums


def test_without_noise_and_limit_the_sums_are_those_of_a_plain_run(case, quiet, monkeypatch):
    monkeypatch.setattr(noisy, "estimate", lambda sums, deviation, expected=None: sums)
    exchange = case.exchange("privacy.clip=100")
    samples = token_samples(4, SEQ_LEN)
    parts = [sums_of(case, exchange, part) for part in (samples[:2], samples[2:])]
    plain, kept = exchange.inner, {}
    walk = BlockWalk(case.loaded, samples)
    for block in range(case.model.num_blocks):
        data = plain.answer(walk, DENSE, False).payload
        expected = plain.aggregator(BlockTask(case.model, block))
        me = Contributor("all", 1, 4 * SEQ_LEN)
        expected.add(expected.check(data, me), me)
        true = expected.close().arrays
        found = closed(case, exchange, block, [one[block] for one in parts], 2 * SEQ_LEN).close()
        assert found.clients == 2
        shares = {share.key: share for share in exchange.plan(case.model).shares[block]}
        spread = unit(exchange.plan(case.model).total, 100)
        first = {f"columns.{name}" for name in token_inputs(case.loaded)} if block == 0 else set()
        told = {name for name in true if not name.startswith(("experts.weights", "experts.norms"))}
        assert set(found.arrays) >= told
        for name, array in found.arrays.items():
            if name.rpartition(".")[0] in first:
                continue  # public text's
            if name.endswith("digits"):
                one, other = (columns(a[name]) for a in (found.arrays, true))
                share = shares["columns/" + name.removeprefix("columns.").removesuffix(".digits")]
                whole = 4 * exchange.scale(case.model, block, share)[:-1] / spread  # a unit each
                assert np.all(np.abs(one - other) <= whole + 1e-5 * other), name
            else:
                assert np.allclose(array, true[name], rtol=1e-3, atol=3), name
        if block + 1 < case.model.num_blocks:
            walk.advance({})
    assert not kept


def columns(digits):
    return get_kind("columns").read({"digits": digits}, digits.shape[1], 1).sums.double().numpy()


def test_words_and_states_are_the_sums(case):
    exchange = case.exchange()
    answers = [sums_of(case, exchange, token_samples(1, SEQ_LEN, seed=n))[2] for n in range(3)]
    one = closed(case, exchange, 2, answers)
    other = exchange.aggregator(BlockTask(case.model, 2))
    clients = [Contributor(f"client {n}", 1, SEQ_LEN) for n in range(3)]
    checked = [other.check(encode_arrays(a), c) for a, c in zip(answers, clients, strict=True)]
    words = [other.words(a, c, 3) for a, c in zip(checked, clients, strict=True)]
    other.add_total({name: sum(w[name] for w in words) for name in other.layout(3)}, clients)
    again = exchange.aggregator(BlockTask(case.model, 2))
    again.restore(one.state())
    for sums in (other, again):
        assert sums.state().keys() == one.state().keys()
        for name, array in one.state().items():
            assert np.array_equal(array, sums.state()[name]), name
    with pytest.raises(KeyError):
        again.restore({"other": np.zeros(1)})
    found = [sums.close().arrays for sums in (one, other, again)]
    for name, array in found[0].items():
        assert all(np.array_equal(array, arrays[name]) for arrays in found[1:]), name


def test_only_what_the_ranking_needs_is_told():
    for ranking, told in (
        ("reap", {"saliency", "tokens"}),
        ("norm", {"norms", "tokens"}),
        ("router_weight", {"weights", "tokens"}),
        ("frequency", {"tokens"}),
    ):
        config = config_of("strategy=fedexperts", "sparsity=0.5", f"strategy.ranking={ranking}")
        exchange, loaded = main_exchange(config), tiny_model("mixtral")
        plan = Plan.here(exchange.summed, loaded)
        assert {share.name for share in plan.shares[0]} == told
        # Their units are alike, since experts are compared with one another.
        assert not plan.sent(0) and not exchange.shares_inputs


def test_fewer_numbers_take_fewer_samples(case):
    exchange = case.exchange()
    promise = exchange.promise(case.model, 10, 3)
    plan = exchange.plan(case.model)
    assert promise["numbers"] == plan.total
    assert promise["statistics"] == [kind.name for kind in exchange.summed]
    wide = promise["multiplier"] * math.sqrt(3) * 1.5 * math.sqrt(plan.total) / 10
    assert promise["relative_noise"] == pytest.approx(wide)
    enough = promise["samples_for_a_tenth"]
    assert exchange.relative_noise(case.model, enough, 3) <= 0.1
    assert exchange.relative_noise(case.model, enough - 1, 3) > 0.1


def test_sums_of_a_block_are_drawn_to_what_public_text_makes_of_them():
    expected = np.array([1.0, 2.0, 3.0, 4.0])
    assert np.allclose(estimate(expected * 7, 1e-9, expected), expected * 7)
    odd = np.array([9.0, 2.0, 3.0, 4.0])
    assert np.allclose(estimate(odd, 1e-9, expected), odd)
    drowned = estimate(np.array([-1e3, 2e3, 0.0, 1e3]), 1e4, expected)
    assert np.allclose(drowned / drowned[0], expected)


def test_cosines_go_there_and_back():
    site = BlockSite(1, 3, torch.nn.Identity(), None, {})
    arrays = {"sums": np.array([9 * UNIT]), "tokens": np.array([10])}
    measures = Cosines().to_measures(arrays, site)
    assert measures == {"over_1": np.array([float(UNIT)])}
    again = Cosines().from_measures(measures, site, 10)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    far = Cosines().from_measures({"over_1": np.array([1e30])}, site, 10)
    Cosines().check(far, site, 10)  # noise makes no cosine of less than -1


def test_an_expert_that_seems_unused_has_no_sums():
    kind, numbers = ExpertSums(), {"tokens": [0.4, 2.6, 1e30], "saliency": [7.0, 8.4, 1e30]}
    found = kind.from_measures({name: np.array(n) for name, n in numbers.items()}, None, 3)
    assert found["tokens"].tolist()[:2] == [0, 3] and found["saliency"].tolist()[:2] == [0, 8]
    assert found["tokens"].max() < 1 << 62


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_numbers_that_no_sample_can_have_are_refused(bad):
    loaded = tiny_model("llama")
    plan = Plan.here([Cosines()], loaded)
    (share,) = plan.shares[0]
    shorten = Shortener(plan, 0, {share.key: np.ones(1)}, 1.5)
    with pytest.raises(WireError, match="finite and not negative"):
        shorten(share, np.array([bad]))


def test_without_noise_nothing_of_it_is_sent():
    loaded = tiny_model("llama")
    plan = Plan.here([Cosines()], loaded)
    kind = ClippedBlock(Cosines(), Shortener(plan, 0, {}, 1.5))
    walk = BlockWalk(loaded, token_samples(2, SEQ_LEN))
    assert walk.observe((), [kind], {}).block == {"cosines": {}}  # it was told no scale
    with pytest.raises(RuntimeError, match="not sent"):
        kind.specs(BlockSite.of(loaded, 0))


def test_a_scale_that_cannot_be_one_is_refused(case):
    exchange, walk = case.exchange(), BlockWalk(case.loaded, token_samples(1, SEQ_LEN))
    with pytest.raises(ReplyRefusedError, match="no scale of block 0"):
        exchange.answer(walk, DENSE, False)
    specs = exchange.plan(case.model).specs(0, "float32")
    for bad in (0.0, -1.0, math.nan, math.inf):
        wrong = {name: np.full(spec.shape, bad, dtype=np.float32) for name, spec in specs.items()}
        exchange.hear(walk, encode_arrays(wrong))
        with pytest.raises(ReplyRefusedError, match="finite and above 0"):
            exchange.answer(walk, DENSE, False)
    exchange.hear(walk, b"nothing")
    with pytest.raises(ReplyRefusedError, match="scale of block 0"):
        exchange.answer(walk, DENSE, False)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=depth"], ["moments", "Set strategy.repair=false"]),
        (
            ["strategy=collect", "strategy.statistics='columns,moments'"],
            ["moments", "Set strategy.statistics=columns"],
        ),
        (
            ["strategy=fedprllm"],
            ["masks", "strategy=fedexperts;", "strategy=depth strategy.repair"],
        ),
    ],
)
def test_what_cannot_have_noise_says_what_can(overrides, words):
    config = config_of("schedule.prefix=dense", *overrides)
    with pytest.raises(ConfigError, match="has no limit, or is so many numbers") as caught:
        main_exchange(config)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_ways_to_noise_are_ways():
    named = [name for name in method_names() if get_method(name).with_noise is not None]
    assert len(named) == 4
    for name in named:
        overrides = get_method(name).with_noise.split()
        config = config_of(f"strategy={name}", *overrides)
        assert isinstance(main_exchange(config), NoisyExchange)
    for name in set(method_names()) - set(named):
        with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
            main_exchange(config_of(f"strategy={name}", "schedule=iterative", "pruner=sparsegpt"))


def test_merged_sums_promise_what_the_weakest_part_does():
    strong = {"epsilon": 1.0, "delta": 1e-6, "samples": 10, "clients": 2, "relative_noise": 0.5}
    weak = {**strong, "epsilon": 8.0, "samples": 5, "relative_noise": 0.2}
    found = _weakest([strong, weak])
    assert (found["epsilon"], found["samples"], found["clients"]) == (8.0, 15, 4)
    assert found["relative_noise"] == 0.5
    assert _weakest([strong, {}]) == {}
