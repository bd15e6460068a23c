"""Samples on their way through the blocks, and where their hidden states lie."""

import logging
import resource

import psutil
import pytest
import torch
import transformers as hf

from fedprune.config import config_from_overrides
from fedprune.errors import ModelError
from fedprune.models.device import Limits, is_out_of_memory
from fedprune.models.loading import loaded_from
from fedprune.models.walk import HiddenStates, ModelWalk, memory_limit
from fedprune.pruning.blocks import BlockWalk
from tests.support.architectures import FAMILIES, tiny_model, tiny_tokenizer, token_samples

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
)


def walked(loaded, samples, batch_size):
    walk = ModelWalk(loaded, samples, limits=Limits(batch_size))
    while walk.blocks_left:
        walk.advance({})
    return walk.hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_change_nothing_but_rounding(family):
    loaded = tiny_model(family)
    samples = token_samples(3, 12) + token_samples(2, 7) + token_samples(2, 12, seed=1)
    one_by_one = walked(loaded, samples, 1)
    for batch_size in (2, 100):
        for made, expected in zip(walked(loaded, samples, batch_size), one_by_one, strict=True):
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_runs_at_once_and_holds_equally_long_samples(monkeypatch):
    loaded, seen = tiny_model(), []
    block = type(loaded.layout.blocks[0])
    forward = block.forward

    def watched(self, hidden_states, *args, **kwargs):
        seen.append(tuple(hidden_states.shape[:2]))
        return forward(self, hidden_states, *args, **kwargs)

    samples = token_samples(3, 12) + token_samples(2, 7)
    walk = BlockWalk(loaded, samples, limits=Limits(batch_size=2))
    monkeypatch.setattr(block, "forward", watched)
    statistics = walk.collect()
    assert seen == [(2, 12), (1, 12), (2, 7)]
    assert {found.tokens for found in statistics.values()} == {3 * 12 + 2 * 7}


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_the_batch_is_halved(error, monkeypatch, caplog):
    loaded, samples = tiny_model("bloom"), token_samples(6, 12)
    expected = BlockWalk(loaded, samples, limits=Limits(batch_size=2))
    walk = BlockWalk(loaded, samples, limits=Limits(batch_size=8))
    down = loaded.layout.linears(0)["mlp.dense_4h_to_h"].module
    forward, failed = type(down).forward, []

    def tight(inputs):
        if len(inputs) > 2:
            failed.append(len(inputs))
            raise error
        return forward(down, inputs)

    monkeypatch.setattr(down, "forward", tight)
    with caplog.at_level(logging.WARNING):
        found = walk.collect()
    assert failed == [6, 4]
    assert "going on with batches of 2 samples" in caplog.text
    # Sums begun before memory ran out are begun anew: nothing counts twice.
    for name, statistics in expected.collect().items():
        assert torch.equal(found[name].sum_squares, statistics.sum_squares)
        assert found[name].tokens == 6 * 12
    for one in (walk, expected):
        one.advance({})
    assert all(map(torch.equal, walk.hidden, expected.hidden))


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
    assert all(map(is_out_of_memory, OUT_OF_MEMORY))


def test_limits_are_those_of_the_configuration():
    config = config_from_overrides(["pruner.batch_size=4", "pruner.hidden_memory_mb=7"])
    assert Limits.of(config.pruner) == Limits(4, 7, "pruner.seq_len")
    assert Limits.of(config.pruner, "evaluation.seq_len").keys[1] == "evaluation.seq_len"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("limit", [0, 100, 250, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_in_comes_out_wherever_it_was(cache, limit, dtype):
    tensors = [torch.randn(1, 2 + number % 3, 7).to(dtype) for number in range(9)]
    states = HiddenStates(limit)
    for tensor in tensors:
        states.append(tensor)
    assert len(states) == 9
    for number in (3, 8, 0, -1, 5):  # not in the order in which they were written
        assert torch.equal(states[number], tensors[number])
    assert all(map(torch.equal, states, tensors))
    assert all(map(torch.equal, states[2:7:2], tensors[2:7:2]))
    with pytest.raises(IndexError):
        states[9]
    assert sum(tensor.nbytes for tensor in states._held) <= limit
    assert (states._file.used) == (limit < sum(tensor.nbytes for tensor in tensors))


def test_views_are_spilled_as_they_look(cache):
    states, tensor = HiddenStates(0), torch.randn(3, 4)
    states.append(tensor.T)
    assert torch.equal(states[0], tensor.T)


def test_nothing_stays_on_the_disk_and_nobody_else_can_look(cache):
    states = HiddenStates(0)
    states.append(torch.ones(4))
    assert list((cache / "spill").iterdir()) == []  # the file has no name
    assert (cache / "spill").stat().st_mode & 0o077 == 0


def test_a_full_disk_is_said_in_our_words(cache, monkeypatch):
    def full(**_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedprune.spill.tempfile.TemporaryFile", full)
    with pytest.raises(ModelError, match="No space left on device.*`pruner.hidden_memory_mb`"):
        HiddenStates(0).append(torch.ones(4))


def test_a_disk_that_fills_up_in_the_middle_is_noticed_at_once(cache):
    states, limits = HiddenStates(0), resource.getrlimit(resource.RLIMIT_FSIZE)
    states.append(torch.ones(1000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(ModelError, match="cannot take them: File too large. Free disk space"):
            states.append(torch.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(states) == 1 and torch.equal(states[0], torch.ones(1000))


def test_the_limit_is_as_configured_or_a_share_of_what_is_free():
    assert memory_limit(3) == 3_000_000 and memory_limit(0) == 0
    assert 0 < memory_limit(None) < psutil.virtual_memory().total // 8


def test_a_walk_is_the_same_whether_its_hidden_states_fit_or_not(cache):
    loaded, samples = tiny_model(), token_samples(4, 12)
    walks = [ModelWalk(loaded, samples, limits=Limits(hidden_memory_mb=mb)) for mb in (0, 100)]
    for walk in walks:
        while walk.blocks_left:
            walk.advance({})
    assert all(map(torch.equal, walks[0].hidden, walks[1].hidden))
    assert (cache / "spill").is_dir()


def test_residuals_keep_their_type_between_two_processes():
    sizes = {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1}
    config = hf.Mamba2Config(hidden_size=32, vocab_size=100, num_hidden_layers=3, **sizes)
    torch.manual_seed(0)
    loaded = loaded_from(hf.Mamba2ForCausalLM(config).bfloat16(), tiny_tokenizer())
    samples = token_samples(2, 8)
    walk = ModelWalk(loaded, samples)
    walk.advance({})
    assert {state.dtype for state in walk.hidden} == {torch.float32}  # `residual_in_fp32`
    resumed = ModelWalk(loaded, samples, hidden=[*walk.hidden], start=1)
    walk.advance({})
    resumed.advance({})
    assert all(map(torch.equal, resumed.hidden, walk.hidden))
