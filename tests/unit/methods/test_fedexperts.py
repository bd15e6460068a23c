"""Federated expert pruning: what is asked for, what it costs, what is kept of several clients."""

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.fedexperts.pooling import pooled_experts
from fedprune.methods.public_model import PublicModel
from fedprune.pruning.block_kinds import BlockSite
from fedprune.pruning.experts import ExpertSums
from fedprune.wire.arrays import encode_arrays, most_bytes
from tests.support.architectures import tiny_model

NAMES = ("saliency", "weights", "norms", "tokens")


def overrides(*options):
    return config_from_overrides(["strategy=fedexperts", "sparsity=0.5", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sparsity=0",), "`sparsity` must be above 0"),
        (("schedule=iterative",), "`schedule.name` must be 'one_shot'"),
        (("allocation=owl",), "`allocation.name` must be 'uniform'"),
        (("allocation=per_block", "allocation.blocks='0.4,0.6'"), "one number of experts for all"),
        (("pruner.pattern='2:4'",), "`pruner.pattern` must be 'unstructured'"),
        (("pruner.batch_size=4",), "`pruner.batch_size` must be 1"),
        (("pruner.ignore=model.layers.0",), "`pruner.ignore` must be empty"),
        (("pruner.targets=mlp",), "`pruner.targets` must be empty"),
        (("evaluation.federated=true",), "`evaluation.federated` must be false"),
        (("strategy.ranking=best",), "strategy.ranking"),
        (("strategy.pooling=median",), "strategy.pooling"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_way_out(options, message):
    with pytest.raises(ConfigError, match=message):
        overrides(*options)


def test_a_client_of_qwen3_30b_a3b_sends_less_than_150_kb():
    # 48 blocks of 128 experts, 4 sums each: 196,608 bytes, of which the upper ones are zeros.
    config = Qwen3MoeConfig(num_hidden_layers=1, num_experts=128)
    with torch.device("meta"):
        block = Qwen3MoeForCausalLM(config).model.layers[0]
    site = BlockSite(0, 48, block, config, {})
    specs = ExpertSums().specs(site)
    assert {name: spec.shape for name, spec in specs.items()} == dict.fromkeys(NAMES, (128,))
    generator = np.random.default_rng(0)
    most = dict.fromkeys(NAMES, 2**40) | {"tokens": 2**18}  # 65,536 outputs of norm 1
    sums = {name: generator.integers(0, most[name], 128) for name in NAMES}
    sent = 48 * len(encode_arrays(sums))
    assert sent <= 48 * most_bytes(specs) < 250_000
    assert 100_000 < sent < 150_000


def task():
    loaded = tiny_model("mixtral")
    sites = tuple(BlockSite.of(loaded, block) for block in range(2))
    model = PublicModel(tuple({} for _ in sites), "", "", "", lambda *_: None, sites=sites)
    return BlockTask(model, 1)


def answers(clients):
    generator = np.random.default_rng(1)
    return [{name: generator.integers(1, 1000, 4) for name in NAMES} for _ in range(clients)]


@pytest.mark.parametrize("pooling", ["tokens", "clients", "scaled", "worst_client"])
def test_a_killed_run_goes_on_to_the_same_arrays_in_any_order(pooling):
    part = pooled_experts(overrides(f"strategy.pooling={pooling}"), ExpertSums())
    assert part.sums(task()).sums_integers == (pooling != "worst_client")
    whole, client = part.sums(task()), Contributor("a", tokens=10_000)
    for answer in answers(5):
        whole.add(whole.check(encode_arrays(answer), client), client)
    expected = whole.close()
    first = part.sums(task())
    for answer in answers(5)[:0:-1]:
        first.add(first.check(encode_arrays(answer), client), client)
    second = part.sums(task())
    second.restore({name: np.array(array) for name, array in first.state().items()})
    second.add(second.check(encode_arrays(answers(5)[0]), client), client)
    found = second.close()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_each_clients_needs_are_not_kept():
    part = pooled_experts(overrides("strategy.pooling=worst_client"), ExpertSums())
    client = Contributor("a")
    sums = part.sums(task())
    for answer in answers(3):
        sums.add(sums.check(encode_arrays(answer), client), client)
    shapes = {name: array.shape for name, array in sums.close().items()}
    assert shapes == dict.fromkeys(NAMES, (4,)) | {"dropped": (2,), "lost": (1,), "excess": (1,)}
