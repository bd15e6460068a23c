import resource

import psutil
import pytest
import torch

from fedprune.errors import ModelError
from fedprune.models import walk as module
from fedprune.models.device import Limits
from fedprune.models.walk import HiddenStates, ModelWalk, memory_limit
from tests.support.architectures import tiny_model, token_samples


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
    assert (states._file is not None) == (limit < sum(tensor.nbytes for tensor in tensors))


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

    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
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
