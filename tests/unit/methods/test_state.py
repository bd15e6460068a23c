"""Sums that are put down in the middle and taken up again are the sums of an undisturbed run."""

from functools import partial

import numpy as np
import pytest
import torch

from fedprune.methods.agreement import MaskSampler
from fedprune.methods.decoding import Decoder
from fedprune.methods.fedspallm.average import WeightSums
from fedprune.methods.moments import MomentPool
from fedprune.methods.sketches import eigen_sketch, nystrom_sketch
from fedprune.methods.state import gathered, scattered
from fedprune.methods.sums import MedianPool, SumsPool
from fedprune.methods.votes import VoteCounter
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from fedprune.wire.moments import InputMoments, Triangle
from fedprune.wire.sums import ExactSums, InputSums

SHAPE = (6, 24)
BASE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
CLIENTS = range(11)
NAMES = ("q", "k")


def mask(client: int) -> BitMask:
    return BitMask.from_bool(np.random.default_rng(client).random(SHAPE) < 0.6)


def moments(client: int) -> torch.Tensor:
    inputs = torch.randn(40, 12, generator=torch.Generator().manual_seed(client))
    return inputs.T @ inputs


def vote(weighted, counter, client):
    counter.add(mask(client), 1 + client * weighted)


def keep_weights(sums, client):
    sums.add(SparseWeight.from_dense(BASE + 0.01 * client, mask(client)), 1 + client)


def decode(decoder, client):
    scores = BASE.abs() * torch.rand(SHAPE[1], generator=torch.Generator().manual_seed(client))
    kept = scores >= scores.median(dim=1, keepdim=True).values
    decoder.add([BitMask.from_bool(kept.numpy())])


def pool_sums(pool, client):
    sums = ExactSums(5)
    sums.add(np.random.default_rng(client).lognormal(0, 9, 5).astype(np.float32))
    pool.add(InputSums(NAMES, sums, 10 + client))


def pool_moments(form, pool, client):
    found = moments(client)
    body = {
        "float32": lambda: Triangle.from_matrix(found.numpy(), "float32"),
        "eigen": lambda: eigen_sketch(found, 3),
        "nystrom": lambda: nystrom_sketch(found, 3, 7),
    }[form]()
    pool.add(InputMoments(NAMES, 40 + client, body))


def sample(sampler, client):
    sampler.add(f"'site/{client}' (partition {client})", {"a": mask(client)})


def everything(found):
    """Flatten what sums say into bytes."""
    if isinstance(found, torch.Tensor):
        return found.numpy().tobytes()
    if isinstance(found, np.ndarray):
        return found.tobytes()
    if isinstance(found, tuple | list):
        return [everything(part) for part in found]
    return found


CASES = {
    "votes": (
        lambda: VoteCounter(BASE.numel()),
        partial(vote, False),
        lambda c: (c.clients, c.total, c.effective_clients, c.counts(0, c.numel)),
    ),
    "weighted votes": (
        lambda: VoteCounter(BASE.numel()),
        partial(vote, True),
        lambda c: (c.clients, c.total, c.effective_clients, c.counts(0, c.numel)),
    ),
    "weights": (
        lambda: WeightSums(BASE),
        keep_weights,
        lambda s: (s.mean("l0"), s.mean("fedavg"), s.votes.histogram()),
    ),
    "norms": (lambda: Decoder([BASE.numpy()]), decode, lambda d: (d.clients, d.pooled())),
    **{
        f"sums by {mode}": (partial(SumsPool, mode), pool_sums, lambda p: p.result())
        for mode in ("tokens", "clients", "scaled")
    },
    **{
        f"moments as {form}": (
            partial(MomentPool, "scaled", 7),
            partial(pool_moments, form),
            lambda p: p.result(),
        )
        for form in ("float32", "eigen", "nystrom")
    },
    "median": (MedianPool, pool_sums, lambda p: (p.result() if p.seen else (), p.seen)),
    "sample": (
        lambda: MaskSampler({"a": SHAPE}, 50, 3),
        sample,
        lambda s: sorted((n, b.tobytes()) for n, b in s.close({"a": mask(0)}).clients.items()),
    ),
}


def through_a_file(path, arrays):
    """Write arrays and read them back, as a run's state is."""
    np.savez(path, **arrays)
    return np.load(path, allow_pickle=False)


@pytest.mark.parametrize("stop", [0, 1, 8, 11])
@pytest.mark.parametrize("case", list(CASES))
def test_sums_go_on_where_they_were(tmp_path, case, stop):
    make, add, say = CASES[case]
    whole, first, second = make(), make(), make()
    for client in CLIENTS:
        add(whole, client)
    for client in CLIENTS[:stop]:
        add(first, client)
    arrays = through_a_file(tmp_path / "sums.npz", gathered({"block/0": first}))
    # Whoever goes on saving is not disturbed either.
    for client in CLIENTS[stop:]:
        add(first, client)
    scattered(arrays, {"block/0": second})
    for client in CLIENTS[stop:]:
        add(second, client)
    assert everything(say(second)) == everything(say(whole)) == everything(say(first))


@pytest.mark.parametrize("case", ["votes", "weights"])
def test_sums_of_another_size_are_refused(case):
    make, add, _ = CASES[case]
    sums, other = make(), VoteCounter(999) if case == "votes" else WeightSums(torch.ones(9, 9))
    add(sums, 0)
    with pytest.raises(ValueError):
        other.restore(sums.state())


@pytest.mark.parametrize("case", sorted(set(CASES) - {"sample"}))
def test_missing_arrays_are_told(case):
    with pytest.raises(KeyError):
        CASES[case][0]().restore({})
