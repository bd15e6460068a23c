"""What the server makes of clients' steps: sums of integers, and the survivors that follow."""

import numpy as np
import pytest
import torch

from fedprune.config import Pattern, config_from_overrides
from fedprune.errors import WireError
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.public_model import PublicModel
from fedprune.methods.reconstruction import ReconstructExchange, Refinement, Step
from fedprune.methods.registry import exchanges
from fedprune.privacy.secure_masks import add_words
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.paired import PairedWalk
from fedprune.pruning.reconstruction import BETAS, EPSILON, FRACTION_BITS, Losses, unit_of
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import SparseWeight, mask_of
from tests.support.architectures import tiny_model, token_samples
from tests.support.secure_sums import check_words

ONE = 1 << FRACTION_BITS
HALF = MaskSpec(0.5, Pattern(), "row")


def exchange_of(*options: str) -> ReconstructExchange:
    found = exchanges(config_from_overrides(["strategy=fedstats", "schedule=iterative", *options]))[
        "reconstruct"
    ]
    assert isinstance(found, ReconstructExchange)
    return found


def pruned(weights):
    pruner = make_pruner(config_from_overrides(["pruner=magnitude"]).pruner)
    return {name: pruner.prune(weight, None, HALF) for name, weight in weights.items()}


def public(weights) -> PublicModel:
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return PublicModel((shapes, shapes), "c", "w", "s", lambda block, name: weights[name])


def federation(samples, clients: int, rule: str, blocks: int = 1, **reconstruct):
    """Fit a block of the tiny model with some clients; return its refinement and the steps."""
    options = [f"reconstruct.{key}={value}" for key, value in reconstruct.items()]
    exchange = exchange_of(f"reconstruct={rule}", *options)
    model, fit, steps = tiny_model(), None, []
    walks = [PairedWalk(model, samples[client::clients]) for client in range(clients)]
    for walk in walks:
        for _ in range(blocks):
            walk.advance(pruned(walk.weights()))
    weights = walks[0].weights()
    changes = pruned(weights)
    fit = Refinement(exchange, weights, changes)
    while True:
        exchange.at(fit.step)
        sums = exchange.aggregator(BlockTask(public(weights), blocks, before=fit.changes()))
        for walk in walks:
            fresh = PairedWalk(
                model,
                walk.samples,
                hidden=walk.hidden,
                dense=walk.dense_hidden,
                start=walk.position,
            )
            fresh.start_from(fit.changes())
            told = Contributor("a", 1, sum(map(len, walk.samples)))
            payload = exchange.answer(fresh, HALF, False).payload
            assert len(payload) <= exchange.most_bytes(public(weights), blocks)
            sums.add(sums.check(payload, told), told)
        steps.append(sums.close())
        if not fit.advance(steps[-1]):
            return fit, steps


@pytest.mark.parametrize("clients", [3, 16])
def test_any_number_of_clients_move_survivors_as_one_does(clients):
    samples = token_samples(16, 10)
    whole, first = federation(samples, 1, "fedsgd", exchanges=3, holdout=0.3)
    parts, second = federation(samples, clients, "fedsgd", exchanges=3, holdout=0.3)
    assert [step.losses for step in first] == [step.losses for step in second]
    assert first[0].losses.held_out_tokens
    for name, change in whole.best().items():
        assert parts.best()[name] == change
    assert whole.moved and first[-1].losses.fitted < first[0].losses.fitted


def test_averages_of_local_steps_lower_the_loss():
    fit, steps = federation(token_samples(8, 16), 4, "fedavg", exchanges=3, holdout=0)
    means = fit.figures(1)["losses"]
    assert len(means) == 4 and means[-1] < 0.95 * means[0]
    assert fit.figures(1)["kept"] == 3
    assert not steps[-1].sums and steps[-1].clients == 4


def test_one_client_and_one_local_step_are_adams_first_step_on_the_sum():
    """What FedAvg and FedSGD have in common."""
    samples, found = token_samples(3, 12), {}
    for rule in ("fedsgd", "fedavg"):
        more = {"local_steps": 1, "exchanges": 1, "holdout": 0}
        fit, _ = federation(samples, 1, rule, **more)
        found[rule] = fit
    for name in found["fedsgd"]._now:
        first, second = (found[rule]._now[name] for rule in ("fedsgd", "fedavg"))
        moved = np.abs(first - second) / found["fedsgd"]._units[name]
        assert np.mean(moved > 1e-4) < 0.05  # but for gradients near zero, and 16 bits


def made(rule: str, size: int = 40, **more):
    weights = {"a": torch.randn(8, 10, generator=torch.Generator().manual_seed(1))}
    options = [f"reconstruct.{key}={value}" for key, value in more.items()]
    exchange = exchange_of(f"reconstruct={rule}", *options)
    return exchange, weights, Refinement(exchange, weights, pruned(weights))


def test_the_servers_steps_are_adams():
    exchange, weights, fit = made("fedsgd", exchanges=4, learning_rate=0.1)
    draw = np.random.default_rng(0)
    start, unit = fit._now["a"].copy(), unit_of(weights["a"])
    plain = torch.from_numpy(start / unit).requires_grad_()
    adam = torch.optim.Adam([plain], betas=BETAS, eps=EPSILON)
    for step in range(4):
        total = draw.integers(-ONE, ONE, start.size) * 7
        losses = Losses(fitted=(10 - step) * ONE, fitted_tokens=7)
        assert fit.advance(Step({"a": total}, losses, 2))
        for group in adam.param_groups:
            group["lr"] = 0.1 * (1 - step / 4)
        plain.grad = torch.from_numpy(total / (7 * ONE))
        adam.step()
        assert np.allclose(fit._now["a"], plain.detach().numpy() * unit, rtol=1e-9)


def test_means_of_changes_are_weighted_by_tokens_with_momentum():
    exchange, weights, fit = made("fedavg", exchanges=3, momentum=0.5, server_rate=0.7)
    unit, start = unit_of(weights["a"]), fit._now["a"].copy()
    velocity = np.zeros_like(start)
    for step in range(2):
        exchange.at(step)
        sums = exchange.aggregator(BlockTask(public(weights), 0, before=fit.changes()))
        draw, changes, tokens = np.random.default_rng(step), [], (5, 20)
        for own in tokens:
            grid = draw.integers(-32767, 32768, start.size).astype(np.int16)
            losses = Losses(fitted=own * ONE // (step + 1), fitted_tokens=own)
            sums.add(({"a": exchange.rule.share(grid, losses)}, losses), Contributor("a"))
            changes.append(grid * exchange.rule.unit)
        mean = sum(own * one for own, one in zip(tokens, changes, strict=True)) / 25
        velocity = 0.5 * velocity + mean
        start = start + 0.7 * velocity * unit
        assert fit.advance(sums.close())
        assert np.allclose(fit._now["a"], start, rtol=1e-12)


def test_the_lowest_held_out_loss_decides_and_ends_it():
    _, weights, fit = made("fedsgd", exchanges=9)
    kept = []
    for loss in (5, 4, 6, 7):  # of what is fitted it falls on
        losses = Losses(10 - len(kept), 3, loss, 2)
        kept.append(fit._now["a"].copy())
        more = fit.advance(Step({"a": np.full(40, ONE)}, losses, 1))
        assert more == (loss != 7)
    assert fit.figures(3) == {
        "block": 3,
        "exchanges": 4,
        "kept": 1,
        "losses": [loss / (2 * ONE) for loss in (5, 4, 6, 7)],
    }
    found = fit.best()["a"]
    assert isinstance(found, SparseWeight)
    assert torch.equal(found.values, torch.from_numpy(kept[1]).float())


def test_what_gets_no_better_stays_as_the_method_made_it():
    _, weights, fit = made("fedsgd", exchanges=9)
    before = fit.changes()
    for _ in range(3):
        more = fit.advance(Step({"a": np.full(40, ONE)}, Losses(1, 1, 5, 1), 1))
    assert not more and not fit.moved and fit.best() is before


def test_nobody_with_a_sample_to_fit_ends_it_at_once():
    _, _, fit = made("fedsgd")
    assert not fit.advance(Step({"a": np.zeros(40, dtype=np.int64)}, Losses(0, 0, 5, 1), 1))


@pytest.mark.parametrize("rule", ["fedsgd", "fedavg"])
def test_a_killed_run_goes_on_from_its_state(rule):
    _, weights, fit = made(rule, exchanges=5, momentum=0.3)
    draw = np.random.default_rng(2)

    def step(number: int) -> Step:
        total = draw.integers(-1000, 1000, 40)
        return Step({"a": total}, Losses((9 - number) * ONE, 9, (9 - number) * ONE, 9), 1)

    for number in range(2):
        fit.advance(step(number))
    again = made(rule, exchanges=5, momentum=0.3)[2]
    again.restore({name: np.array(array) for name, array in fit.state().items()})
    third = step(2)
    assert again.advance(third) == fit.advance(third)
    assert again.step == fit.step == 3
    assert again.best()["a"] == fit.best()["a"]
    assert np.array_equal(again._now["a"], fit._now["a"])
    assert again.figures(0) == fit.figures(0)


@pytest.mark.parametrize("rule", ["fedsgd", "fedavg"])
def test_answers_as_words_come_to_what_the_answers_do(rule):
    exchange, weights, fit = made(rule)
    task = BlockTask(public(weights), 0, before=fit.changes())
    one, total = exchange.aggregator(task), exchange.aggregator(task)
    draw, layout, added = np.random.default_rng(0), total.layout(3), None
    clients = [Contributor(str(number)) for number in range(3)]
    for client in clients:
        own = {"a": draw.integers(-(2**14), 2**14, 40)}, Losses(5, 7, 3, 2)
        one.add(own, client)
        words = one.words(own, client, 3)
        check_words(words, layout)
        if added is None:
            added = {name: array.copy() for name, array in words.items()}
        else:
            for name, array in words.items():
                add_words(added[name], array)
    total.add_total(added, clients)
    first, second = one.close(), total.close()
    assert np.array_equal(first.sums["a"], second.sums["a"]) and first.losses == second.losses
    assert first.clients == second.clients == 3
    restored = exchange.aggregator(task)
    restored.restore({name: np.array(array) for name, array in one.state().items()})
    assert restored.close().losses == first.losses
    with pytest.raises(WireError, match="sum of losses"):
        exchange.aggregator(task).add_total({**added, "losses": added["losses"] * 0 - 1}, clients)


def test_an_exchange_beyond_the_last_is_refused():
    exchange = exchange_of("reconstruct=fedsgd", "reconstruct.exchanges=3")
    assert exchange.at(3).measures and not exchange.at(2).measures
    for step in (4, -1):
        with pytest.raises(WireError, match="was asked for"):
            exchange.at(step)


def test_the_cost_is_said_before():
    exchange, weights, _ = made("fedavg", exchanges=4)
    text = exchange.announcement(public(weights))
    # 2 blocks of 40 survivors, two bytes each, four times; down four bytes and masks, five times.
    assert "640 B more" in text and "1.7 kB" in text, text
    assert mask_of(pruned(weights)["a"]).survivors == 40
