"""Answers as words: their sum, in any order, is what the answers one by one would have come to."""

import numpy as np
import pytest

from fedprune.config import config_from_overrides
from fedprune.errors import WireError
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.registry import exchanges, get_method
from fedprune.methods.word_sums import WordSpec, add_words, check_words, counter_bits
from fedprune.models.loading import load_model
from tests.support.architectures import tiny_model
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
}


def added(aggregator, payloads, clients):
    for payload, client in zip(payloads, clients, strict=True):
        aggregator.add(aggregator.check(payload, client), client)
    return aggregator.state()


def summed(aggregator, payloads, clients):
    """Return the sums of the clients' words, each made by an aggregator that holds nothing else."""
    layout = aggregator.layout(len(clients))
    total = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
    for payload, client in zip(payloads, clients, strict=True):
        words = aggregator.words(aggregator.check(payload, client), client, len(clients))
        check_words(words, layout)
        for name, one in words.items():
            add_words(total[name], one)
    return total


def test_the_sum_of_words_is_what_answers_one_by_one_come_to():
    loaded = load_model(config_from_overrides([]).model)
    model, samples = public(loaded), drawn(loaded, CLIENTS)
    clients = contributors(samples)
    for made in EXCHANGES.values():
        asked = made()
        told = [answers(loaded, asked, one) for one in samples]
        for block in range(model.num_blocks):
            task, payloads = BlockTask(model, block), [one[block] for one in told]
            expected = added(asked.aggregator(task), payloads, clients)
            assert asked.aggregator(task).sums_integers
            total = summed(asked.aggregator(task), payloads[::-1], clients[::-1])
            found = asked.aggregator(task)
            found.add_total(total, clients)
            assert same(found.state(), expected)


@pytest.mark.parametrize("pooling", ["tokens", "clients", "scaled"])
def test_the_sum_of_experts_words_is_what_answers_one_by_one_come_to(pooling):
    loaded = tiny_model("mixtral")
    model, samples = public(loaded), drawn(loaded, CLIENTS)
    clients = contributors(samples)
    asked = exchange("strategy=fedexperts", f"strategy.pooling={pooling}")
    told = [answers(loaded, asked, one) for one in samples]
    for block in range(model.num_blocks):
        task, payloads = BlockTask(model, block), [one[block] for one in told]
        expected = added(asked.aggregator(task), payloads, clients)
        found = asked.aggregator(task)
        found.add_total(summed(asked.aggregator(task), payloads, clients), clients)
        assert same(found.state(), expected)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


def test_sums_of_other_tokens_than_were_promised_are_refused():
    loaded = load_model(config_from_overrides([]).model)
    model, samples = public(loaded), drawn(loaded, 2)
    clients = contributors(samples)
    for name in ("columns", "survey", "collected"):
        asked = EXCHANGES[name]()
        payloads = [answers(loaded, asked, one)[0] for one in samples]
        total = summed(asked.aggregator(BlockTask(model, 0)), payloads, clients)
        with pytest.raises(WireError, match=r"tokens"):
            asked.aggregator(BlockTask(model, 0)).add_total(total, [*clients, clients[0]])


@pytest.mark.parametrize(("most", "bits"), [(3, 8), (255, 8), (256, 16), (1 << 40, 64)])
def test_a_counter_is_as_wide_as_it_must_be(most, bits):
    assert counter_bits(most) == bits


def test_words_of_128_bits_carry_and_wrap():
    total = np.array([[2**64 - 1, 5], [1, 2**64 - 1]], dtype=np.uint64)
    add_words(total, np.array([[1, 1], [2**64 - 1, 0]], dtype=np.uint64))
    assert total.tolist() == [[0, 7], [0, 0]]


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"b": np.zeros(3, np.uint64)},
        {"a": np.zeros(3, np.int64)},
        {"a": np.zeros(4, np.uint64)},
        {"a": np.zeros((3, 2), np.uint64)},
    ],
)
def test_other_words_than_the_layout_says_are_refused(words):
    with pytest.raises(WireError):
        check_words(words, {"a": WordSpec(3, 64)})
