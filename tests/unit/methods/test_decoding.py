"""Norms decoded from masks, against the norms that the masks were made with."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedprune.errors import ModelError, QuorumError, WireError
from fedprune.methods.decoding import Decoder, Fit
from fedprune.wire.masks import BitMask

SHAPE = (256, 512)


@dataclass
class Layer:
    """Linears that share an input, and the norms that all clients have in common."""

    weights: list
    norms: np.ndarray


def layer(*shapes, seed=0, dtype=np.float16):
    """Return heavy-tailed weights with loud rows and columns, and norms."""
    rng = np.random.default_rng(seed)
    loud = rng.lognormal(0, 0.2, shapes[0][1])
    weights = [
        (rng.standard_t(5, shape) * rng.lognormal(0, 0.3, (shape[0], 1)) * loud)
        .astype(dtype)
        .astype(np.float32)
        for shape in shapes
    ]
    return Layer(weights, rng.lognormal(0, 0.5, shapes[0][1]).astype(np.float32))


def fit_norms(weights, masks):
    """Return what one client's masks of linears that share an input say of its norms."""
    return Decoder(weights).fit(masks)


def noisy(norms, noise, seed):
    """Return the norms of one client."""
    rng = np.random.default_rng(seed)
    return (norms * rng.lognormal(0, noise, norms.size)).astype(np.float32)


def wanda(weights, norms, sparsity=0.5):
    """Return masks by sorting each row, the lower index pruned first among equals."""
    masks = []
    for weight in weights:
        scores = np.abs(weight) * norms.astype(np.float32)
        order = np.argsort(scores, axis=1, kind="stable")
        mask = np.ones(weight.shape, dtype=bool)
        np.put_along_axis(mask, order[:, : int(weight.shape[1] * sparsity)], False, axis=1)
        masks.append(BitMask.from_bool(mask))
    return masks


def voted(weights, clients, sparsity):
    """Return masks that prune the most voted weights of each row, ties by magnitude."""
    masks = []
    for number, weight in enumerate(weights):
        keeps = sum(masks[number].to_bool().astype(int) for masks in clients)
        order = np.lexsort((np.abs(weight), keeps), axis=1)
        mask = np.ones(weight.shape, dtype=bool)
        np.put_along_axis(mask, order[:, : int(weight.shape[1] * sparsity)], False, axis=1)
        masks.append(mask)
    return masks


def errors(fit, norms):
    """Return the relative errors of the norms, up to one scale."""
    away = fit.log_norms - np.log(norms)
    return np.abs(away - np.median(away))


def differing(masks, others):
    """Return the share of bits that differ."""
    bits = [(a.to_bool() != b).mean() for a, b in zip(masks, others, strict=True)]
    return float(np.mean(bits))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_norms_come_back_and_honest_masks_have_no_violation(sparsity, seed):
    made = layer(SHAPE, seed=seed)
    norms = noisy(made.norms, 0.05, seed)
    fit = fit_norms(made.weights, wanda(made.weights, norms, sparsity))
    assert fit.violations == (0.0,)
    assert np.median(errors(fit, norms)) < 8e-3
    assert np.quantile(errors(fit, norms), 0.95) < 4e-2


def test_more_rows_of_one_input_tell_more():
    made = layer((512, 256), (128, 256), (128, 256))
    norms = noisy(made.norms, 0.05, 1)
    masks = wanda(made.weights, norms)
    all_rows, one = fit_norms(made.weights, masks), fit_norms(made.weights[1:2], masks[1:2])
    assert all_rows.violations == (0.0, 0.0, 0.0)
    assert np.median(errors(all_rows, norms)) < 3e-3
    assert np.median(errors(all_rows, norms)) < np.median(errors(one, norms)) / 2


def test_a_fit_without_violations_gives_the_mask_back():
    made = layer(SHAPE)
    masks = wanda(made.weights, noisy(made.norms, 0.1, 5), 0.6)
    decoder = Decoder(made.weights)
    assert decoder.add(masks) == (0.0,)
    assert decoder.clients == 1
    again = wanda(made.weights, np.sqrt(decoder.pooled()), 0.6)
    assert differing(again, [mask.to_bool() for mask in masks]) < 1e-4


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_pooled_mask_is_far_closer_than_votes(sparsity):
    made = layer((512, 512))
    clients = [noisy(made.norms, 0.1, seed) for seed in range(8)]
    masks = [wanda(made.weights, norms, sparsity) for norms in clients]
    squares = [norms.astype(np.float64) ** 2 for norms in clients]
    exact = wanda(made.weights, np.sqrt(sum(s / s.mean() for s in squares)), sparsity)
    decoder = Decoder(made.weights)
    for mask in masks:
        decoder.add(mask)
    decoded = wanda(made.weights, np.sqrt(decoder.pooled()), sparsity)
    by_votes = differing(exact, voted(made.weights, masks, sparsity))
    by_norms = differing(exact, [mask.to_bool() for mask in decoded])
    assert by_votes > 5e-3
    assert by_norms < 1e-3
    assert by_norms < by_votes / 8


def test_order_and_company_do_not_show():
    made = layer((64, 128))
    masks = [wanda(made.weights, noisy(made.norms, 0.1, seed)) for seed in range(5)]
    forward, backward, alone = (Decoder(made.weights) for _ in range(3))
    seen = [forward.add(mask, weight) for weight, mask in enumerate(masks, start=1)]
    for weight, mask in reversed(list(enumerate(masks, start=1))):
        assert backward.add(mask, weight) == seen[weight - 1]
    assert forward.pooled().tobytes() == backward.pooled().tobytes()
    assert forward.pooled().dtype == np.float32
    fits = [decoder.fit(masks[3]).log_norms for decoder in (forward, alone)]
    assert fits[0].tobytes() == fits[1].tobytes()


def test_weights_count_clients_several_times():
    made = layer((64, 128))
    one, two = (wanda(made.weights, noisy(made.norms, 0.1, seed)) for seed in range(2))
    weighted, repeated = Decoder(made.weights), Decoder(made.weights)
    weighted.add(one, 2)
    weighted.add(two)
    for mask in one, two, one:
        repeated.add(mask)
    assert np.array_equal(weighted.pooled(), repeated.pooled())


def test_clients_count_the_same_whatever_their_scale():
    made = layer((64, 128))
    quiet, loud = Decoder(made.weights), Decoder(made.weights)
    quiet.add(wanda(made.weights, made.norms))
    loud.add(wanda(made.weights, made.norms * 1024))
    assert np.array_equal(quiet.pooled(), loud.pooled())
    assert quiet.pooled().mean() == pytest.approx(1.0)


def test_counts_of_rows_and_columns_say_everything():
    made = layer(SHAPE)
    masks = wanda(made.weights, made.norms)
    moved = masks[0].to_bool()
    rows = (
        np.flatnonzero(moved[:, 0] & ~moved[:, 1])[0],
        np.flatnonzero(~moved[:, 0] & moved[:, 1])[0],
    )
    moved[np.ix_(rows, (0, 1))] ^= True
    honest, liar = (fit_norms(made.weights, m) for m in (masks, [BitMask.from_bool(moved)]))
    assert np.array_equal(honest.log_norms, liar.log_norms)
    assert liar.violations == (4 / moved.size,)


def test_moved_and_random_masks_show():
    made = layer(SHAPE)
    rng = np.random.default_rng(3)
    moved = wanda(made.weights, made.norms)[0].to_bool()
    for row in moved:
        for value in True, False:  # as many either way: each row keeps its count
            places = rng.choice(np.flatnonzero(row == value), 2, replace=False)
            row[places] = not value
    rest = fit_norms(made.weights, [BitMask.from_bool(moved)]).violations[0]
    assert 4 / 512 < rest < 3 * 4 / 512
    guesses = BitMask.from_bool(rng.random(SHAPE) < 0.5)
    assert fit_norms(made.weights, [guesses]).violations[0] == pytest.approx(0.5, abs=0.03)


def test_dead_and_loud_columns():
    made = layer(SHAPE)
    norms = noisy(made.norms, 0.05, 1)
    dead, loud = [3, 70], [4, 200]
    norms[dead], norms[loud] = 0.0, 1e6
    fit = fit_norms(made.weights, wanda(made.weights, norms))
    assert fit.violations == (0.0,)
    assert np.isfinite(fit.log_norms).all()
    others = np.delete(np.arange(512), dead + loud)
    assert np.median(errors(Fit(fit.log_norms[others], ()), norms[others])) < 8e-3
    again = wanda(made.weights, np.exp(fit.log_norms))[0].to_bool()
    assert not again[:, dead].any()
    assert again[:, loud].all()


def test_zero_weights_say_nothing():
    made = layer(SHAPE)
    weight = made.weights[0]
    weight[:, 9] = 0.0  # nothing is known of this column,
    weight[5] = 0.0  # half of this row is kept by index alone,
    weight[6:60, :200] = 0.0  # and these are pruned in any case
    norms = noisy(made.norms, 0.05, 1)
    fit = fit_norms([weight], wanda([weight], norms))
    assert fit.violations[0] == 0.0
    known = np.delete(np.arange(512), 9)
    assert np.median(errors(Fit(fit.log_norms[known], ()), norms[known])) < 8e-3
    assert fit.log_norms[9] == pytest.approx(fit.log_norms[known].mean(), abs=0.01)


def test_bfloat16_weights():
    made = layer(SHAPE, dtype=np.float32)
    weights = [torch.from_numpy(w).to(torch.bfloat16).float().numpy() for w in made.weights]
    norms = noisy(made.norms, 0.05, 2)
    fit = fit_norms(weights, wanda(weights, norms))
    assert fit.violations == (0.0,)
    assert np.median(errors(fit, norms)) < 8e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5), (37, 77), (200, 70)])
def test_any_shape(shape):
    made = layer(shape, seed=1)
    fit = fit_norms(made.weights, wanda(made.weights, made.norms))
    assert fit.violations == (0.0,)
    assert fit.log_norms.shape == (shape[1],)
    assert fit.squares.mean() == pytest.approx(1.0)


@pytest.mark.parametrize("keep", [True, False])
def test_masks_without_a_threshold(keep):
    made = layer((20, 30))
    fit = fit_norms(made.weights, [BitMask.from_bool(np.full((20, 30), keep))])
    assert fit.violations == (0.0,)
    assert np.isfinite(fit.log_norms).all()


def test_weights_that_cannot_be_told_apart():
    mask = BitMask.from_bool(np.random.default_rng(0).random((40, 60)) < 0.5)
    fit = fit_norms([np.ones((40, 60), dtype=np.float32)], [mask])
    assert np.isfinite(fit.log_norms).all()
    assert 0.3 < fit.violations[0] < 0.7


def test_refused_input():
    weights = layer((4, 6)).weights
    with pytest.raises(ModelError, match=r"one width.*\(4, 6\), \(4, 5\)"):
        Decoder([weights[0], weights[0][:, :5]])
    with pytest.raises(ModelError, match="one width"):
        Decoder([])
    for value in np.nan, np.inf:
        broken = weights[0].copy()
        broken[1, 2] = value
        with pytest.raises(ModelError, match="NaN or infinite"):
            Decoder([broken])
    decoder = Decoder(weights)
    with pytest.raises(QuorumError, match="No client"):
        decoder.pooled()
    with pytest.raises(WireError, match=r"\(4, 6\).*\(6, 4\)"):
        decoder.add([BitMask.from_bool(np.ones((6, 4), dtype=bool))])
    assert decoder.clients == 0
