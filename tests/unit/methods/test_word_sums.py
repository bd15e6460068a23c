"""Answers as words: their sum, in any order, is what the answers one by one would have come to."""

import numpy as np
import pytest

from fedprune.config import config_from_overrides
from fedprune.errors import WireError
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.registry import exchanges, get_method
from fedprune.methods.word_sums import counter_bits
from fedprune.models.loading import load_model
from fedprune.privacy.secure_masks import add_words
from fedprune.pruning.groups import BlockSpec
from tests.support.architectures import tiny_model
from tests.support.secure_sums import check_words
from tests.support.statistics import answers, drawn, public

CLIENTS = 5


def contributors(samples):
    return [Contributor(f"client {n}", 1, sum(map(len, one))) for n, one in enumerate(samples)]


def exchange(*overrides: str):
    config = config_from_overrides(overrides)
    return get_method(config.strategy.name).exchange(config)


def survey():
    return exchanges(config_from_overrides(["allocation=owl"]))["survey"]


EXCHANGES = {
    "columns": lambda: exchange("strategy=fedstats"),
    "pooled by clients": lambda: exchange("strategy=fedstats", "strategy.pooling=clients"),
    "pooled by shares": lambda: exchange("strategy=fedstats", "strategy.pooling=scaled"),
    "survey": survey,
    "collected": lambda: exchange(
        "strategy=collect", "strategy.statistics='columns,values,cosines'"
    ),
    "votes": lambda: exchange("strategy=fedprllm"),
    "votes of 2:4": lambda: exchange("strategy=fedprllm", "pruner.pattern='2:4'"),
    "survivors": lambda: exchange("strategy=fedspallm", "pruner=sparsegpt"),
    "survivors that do not move": lambda: exchange("strategy=fedspallm"),
    "sketches": lambda: moments("nystrom"),
    "sketches by clients": lambda: moments("nystrom", "strategy.pooling=clients"),
    "moments": lambda: moments("float32"),
    "half moments": lambda: moments("float16", "strategy.max_width=200"),
    "experts by tokens": lambda: exchange("strategy=fedexperts"),
    "experts by clients": lambda: exchange("strategy=fedexperts", "strategy.pooling=clients"),
    "experts by shares": lambda: exchange("strategy=fedexperts", "strategy.pooling=scaled"),
}


def moments(form: str, *overrides: str):
    return exchange(
        "strategy=fedhessian", "pruner=sparsegpt", f"strategy.moments={form}", *overrides
    )


def without_agreement(state):
    """Leave out the few bits of each client's masks, which there are none of under masks."""
    return {name: array for name, array in state.items() if not name.startswith("sample/")}


def added(aggregator, payloads, clients):
    for payload, client in zip(payloads, clients, strict=True):
        aggregator.add(aggregator.check(payload, client), client)
    return without_agreement(aggregator.state())


def summed(asked, task, payloads, clients):
    """Return the sums of the clients' words, each made by an aggregator that holds nothing else."""
    layout = asked.aggregator(task).layout(len(clients))
    total = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
    for payload, client in zip(payloads, clients, strict=True):
        aggregator = asked.aggregator(task)
        words = aggregator.words(aggregator.check(payload, client), client, len(clients))
        check_words(words, layout)
        for name, one in words.items():
            add_words(total[name], one)
    return total


@pytest.fixture(scope="module")
def loaded():
    return load_model(config_from_overrides([]).model)


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_sum_of_words_is_what_answers_one_by_one_come_to(loaded, name):
    loaded = tiny_model("mixtral") if name.startswith("experts") else loaded
    model, samples = public(loaded), drawn(loaded, CLIENTS)
    clients, asked = contributors(samples), EXCHANGES[name]()
    pruner = asked.config.pruner
    spec = BlockSpec(asked.config.sparsity, pruner.pattern, pruner.group)
    told = [answers(loaded, asked, one, spec) for one in samples]
    for block in (0, model.num_blocks - 1):
        task = BlockTask(model, block, total_weight=CLIENTS)
        payloads = [one[block] for one in told]
        expected = added(asked.aggregator(task), payloads, clients)
        assert asked.aggregator(task).sums_integers
        total = summed(asked, task, payloads[::-1], clients[::-1])
        found = asked.aggregator(task)
        found.add_total(total, clients)
        state = without_agreement(found.state())
        assert state.keys() == expected.keys()
        assert all(np.array_equal(state[key], array) for key, array in expected.items()), name


def test_sums_of_other_tokens_than_were_promised_are_refused(loaded):
    model, samples = public(loaded), drawn(loaded, 2)
    clients = contributors(samples)
    for name in ("columns", "survey", "collected"):
        asked = EXCHANGES[name]()
        payloads = [answers(loaded, asked, one)[0] for one in samples]
        total = summed(asked, BlockTask(model, 0), payloads, clients)
        with pytest.raises(WireError, match=r"tokens"):
            asked.aggregator(BlockTask(model, 0)).add_total(total, [*clients, clients[0]])


def changed(total, name, change):
    """Return sums of words of which some are others."""
    (name,) = (one for one in total if one.endswith(name))
    array = total[name].copy()
    change(array)
    return {**total, name: array}


def a_vote_more(keeps):
    keeps[np.flatnonzero(keeps < CLIENTS)[0]] += 1


def too_many_votes(keeps):
    row = keeps[:192]  # of the first output: as many as before, but a client votes twice
    row[row.argmax()] = CLIENTS + 1
    row[np.flatnonzero((row > 0) & (row <= CLIENTS))[0]] -= 1


@pytest.mark.parametrize(
    ("exchange", "name", "change", "said"),
    [
        ("votes", "q_proj/keeps", a_vote_more, "row 0 must have"),
        ("votes", "q_proj/keeps", too_many_votes, "6 votes of 5"),
        ("votes", "q_proj/clients", lambda one: one.__isub__(1), "4 votes of 5 clients"),
        ("survivors", "q_proj/keeps", a_vote_more, "matrix 0 must have"),
        ("survivors", "q_proj/sums", lambda one: one.fill(1 << 62), "larger than those"),
        ("sketches", "q_proj/diagonal", lambda one: one.fill(2**64 - 1), "negative diagonal"),
        ("moments", "q_proj/triangle", lambda one: one[1:2].fill(1 << 60), "semi-definite"),
    ],
)
def test_sums_that_no_answers_come_to_are_refused(loaded, exchange, name, change, said):
    model, samples = public(loaded), drawn(loaded, CLIENTS)
    clients, asked = contributors(samples), EXCHANGES[exchange]()
    task, pruner = BlockTask(model, 0, total_weight=CLIENTS), asked.config.pruner
    spec = BlockSpec(0.5, pruner.pattern, pruner.group)
    payloads = [answers(loaded, asked, one, spec)[0] for one in samples]
    total = summed(asked, task, payloads, clients)
    asked.aggregator(task).add_total(total, clients)
    with pytest.raises(WireError, match=said):
        asked.aggregator(task).add_total(changed(total, name, change), clients)


@pytest.mark.parametrize(("most", "bits"), [(3, 8), (255, 8), (256, 16), (1 << 40, 64)])
def test_a_counter_is_as_wide_as_it_must_be(most, bits):
    assert counter_bits(most) == bits
