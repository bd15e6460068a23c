"""The three functions that need no Flower: their examples, and agreement with the runs."""

import doctest
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import fedprune
import fedprune.api
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, DataError, ModelError
from fedprune.evaluation.perplexity import perplexity
from fedprune.models.loading import load_model
from fedprune.pruning.wanda import MagnitudePruner
from fedprune.wire.changes import LinearUpdate, SparseWeight
from fedprune.wire.masks import BitMask

TEXT = "Return the absolute path of a file, or None if there is no such file. " * 9
OTHER = "The list is sorted in place and nothing is returned, as for all methods. " * 9


@pytest.fixture(scope="module")
def demo():
    return load_model(config_from_overrides([]).model)


@pytest.fixture(scope="module")
def clients(demo):
    return [fedprune.prune_locally(demo, [text]) for text in (TEXT, OTHER)]


def test_every_function_s_example_runs():
    found = doctest.testmod(fedprune.api)
    assert found.attempted >= 9 and not found.failed
    for name in ("prune_locally", "aggregate", "evaluate"):
        assert getattr(fedprune, name) is getattr(fedprune.api, name)
        assert ">>> import fedprune" in getattr(fedprune, name).__doc__


def test_the_example_of_the_documentation_runs():
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted >= 7 and not found.failed


def test_importing_the_package_loads_nothing_and_its_functions_no_flower():
    code = (
        "import sys, fedprune; assert 'torch' not in sys.modules; "
        "assert 'evaluate' in dir(fedprune); fedprune.evaluate; "
        "assert 'torch' in sys.modules and 'flwr' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = fedprune.nothing


def test_texts_and_their_samples_give_the_same_masks(demo):
    tokens = demo.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    samples = [torch.tensor(tokens[start : start + 32]) for start in range(0, 96, 32)]
    assert len(tokens) // 32 >= 3
    cut = fedprune.prune_locally(demo, samples, overrides=["pruner.seq_len=32"])
    text = demo.tokenizer.decode(tokens[:96])
    for texts in ([text], text):
        assert cut == fedprune.prune_locally(demo, texts, overrides=["pruner.seq_len=32"])


def test_a_pruner_of_one_s_own_and_any_key_about_pruning(demo):
    mine = fedprune.prune_locally(demo, [], pruner=MagnitudePruner(), sparsity=0.25)
    assert mine == fedprune.prune_locally("demo", [], pruner="magnitude", sparsity=0.25)
    weight = demo.weight(0, "mlp.up_proj").abs()
    mask = mine[0]["mlp.up_proj"].to_bool()
    assert weight[mask].min() >= weight[~mask].max() and (~mask).sum() == weight.numel() // 4
    rows = fedprune.prune_locally(
        demo, [], pruner=MagnitudePruner(), sparsity=0.25, overrides="pruner.group=row"
    )
    for row, kept in zip(weight, rows[0]["mlp.up_proj"].to_bool(), strict=True):
        assert row[kept].min() >= row[~kept].max() and (~kept).sum() == len(row) // 4
    pairs = fedprune.prune_locally(demo, [TEXT], overrides=["pruner.pattern='2:4'"])
    assert np.all(pairs[2]["mlp.up_proj"].to_bool().reshape(-1, 4).sum(axis=1) == 2)


@pytest.mark.parametrize("floor", [True, False])
def test_votes_against_the_sorted_sum_of_masks(demo, clients, floor):
    rule = [] if floor else ["strategy.majority_floor=false"]
    told = [*clients, clients[0]]
    voted = fedprune.aggregate(told, model=demo, sparsity=0.4, overrides=rule)
    for block, linears in voted.items():
        for name, mask in linears.items():
            masks = [client[block][name].to_bool() for client in told]
            pruned = sum((~one).astype(int) for one in masks).reshape(-1)
            if floor:
                pruned[2 * pruned <= len(told)] = 0
            magnitude = demo.weight(block, name).abs().reshape(-1).numpy()
            order = np.lexsort((np.arange(pruned.size), magnitude, -pruned))
            expected = np.ones(pruned.size, dtype=bool)
            expected[order[: int(pruned.size * 0.4)]] = False
            assert np.array_equal(mask.to_bool().reshape(-1), expected)


@pytest.mark.parametrize("how", ["l0", "fedavg"])
def test_means_over_those_that_kept_a_weight_or_over_all(demo, how):
    made = [
        fedprune.prune_locally(demo, [text], pruner="sparsegpt") for text in (TEXT, OTHER, TEXT[9:])
    ]
    mean = fedprune.aggregate(made, model=demo, how=how)
    found = mean[1]["self_attn.k_proj"]
    values = np.stack([client[1]["self_attn.k_proj"].dense().numpy() for client in made])
    keepers = np.stack([client[1]["self_attn.k_proj"].mask.to_bool() for client in made]).sum(0)
    divisor = np.maximum(keepers, 1) if how == "l0" else 3
    kept = found.mask.to_bool()
    expected = values.sum(axis=0) / divisor
    assert np.allclose(found.dense().numpy()[kept], expected[kept], rtol=1e-5, atol=1e-7)
    assert (~kept).sum() == kept.size // 2


def test_nm_votes_and_blocks_that_few_or_none_pruned(demo):
    nm = [
        fedprune.prune_locally(demo, [text], overrides=["pruner.pattern='2:4'"])
        for text in (TEXT, OTHER)
    ]
    part = {0: nm[1][0]}
    found = fedprune.aggregate([part, {0: nm[0][0], 2: nm[0][2]}], model=demo, pattern="2:4")
    assert np.all(found[0]["mlp.down_proj"].to_bool().reshape(-1, 4).sum(axis=1) == 2)
    assert found[1] == {} and found[2] == nm[0][2]


def test_a_changed_model_is_measured_as_the_runs_measure_it(demo, clients):
    dense, pruned = fedprune.evaluate(demo, TEXT), fedprune.evaluate(demo, TEXT, clients[0])
    tokens = demo.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(tokens[: len(tokens) // 128 * 128]).reshape(-1, 128)
    assert dense == perplexity(demo, windows) and pruned == perplexity(
        demo, windows, "cpu", clients[0]
    )
    assert fedprune.evaluate(demo, [TEXT], seq_len=64).tokens == 63 * (len(tokens) // 64)


def test_what_is_refused(demo, clients):
    with pytest.raises(ConfigError, match="`sparsity`"):
        fedprune.prune_locally(demo, [TEXT], sparsity=1.5)
    with pytest.raises(DataError, match="fill one sample.*pruner.seq_len"):
        fedprune.prune_locally(demo, ["short"])
    with pytest.raises(ConfigError, match="`results`"):
        fedprune.aggregate([], model=demo)
    with pytest.raises(ConfigError, match="`how` must be .* got 'vote'"):
        fedprune.aggregate(clients, model=demo, how="vote")
    with pytest.raises(ConfigError, match="`sparsity` must be .* got 50"):
        fedprune.aggregate(clients, model=demo, sparsity=50)
    wrong = {0: {"self_attn.q_proj": BitMask.from_bool(np.ones((4, 8), dtype=bool))}}
    with pytest.raises(ModelError, match="shape \\(4, 8\\)"):
        fedprune.aggregate([wrong], model=demo)
    mask = clients[0][0]["self_attn.q_proj"]
    keeps = np.ones(mask.survivors, dtype=np.uint8)
    with pytest.raises(ConfigError, match="scaled survivors"):
        fedprune.aggregate(
            [{0: {"self_attn.q_proj": LinearUpdate(mask, keeps, 1)}}], model=demo, how="l0"
        )


def test_masks_alone_average_to_the_public_weights(demo, clients):
    mean = fedprune.aggregate(clients, model=demo, how="l0")
    found = mean[0]["mlp.gate_proj"]
    assert isinstance(found, SparseWeight)
    kept = torch.from_numpy(found.mask.to_bool())
    assert torch.equal(found.dense()[kept], demo.weight(0, "mlp.gate_proj")[kept])


def test_token_ids_in_every_form_that_people_have_them(demo):
    ids = demo.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:96]
    rows = [ids[:32], ids[32:64], ids[64:]]
    expected = fedprune.prune_locally(demo, [torch.tensor(row) for row in rows])
    batch = torch.tensor(rows)
    forms = {
        "a batch": batch,
        "what a tokenizer returns": {"input_ids": batch, "attention_mask": batch},
        "one row each": [row[None] for row in batch],
        "lists": rows,
        "arrays": [np.array(row, dtype=np.int32) for row in rows],
        "a generator": (torch.tensor(row) for row in rows),
        "a data set": datasets.Dataset.from_dict({"input_ids": rows}),
    }
    for form, given in forms.items():
        assert fedprune.prune_locally(demo, given) == expected, form
    assert fedprune.prune_locally(demo, rows[0]) == fedprune.prune_locally(demo, [batch[0]])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["text", torch.tensor([1, 2])], "1 strings and 1 others"),
        ([torch.tensor([0.5, 1.0])], "Sample 0 must be token ids.*Tensor of shape"),
        ([torch.tensor([1, 10**6])], "from 0 to .*rows of the model's embedding"),
        ([torch.tensor([-1, 3])], "from 0 to "),
        ([[1, 2], None], "Sample 1 must be token ids"),
        ([torch.zeros(1, 10_000, dtype=torch.long)], "positions"),
        (3, "got int"),
    ],
)
def test_what_is_no_text_and_no_token_ids(demo, texts, words):
    with pytest.raises((DataError, ModelError), match=words):
        fedprune.prune_locally(demo, texts)
