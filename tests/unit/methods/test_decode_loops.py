"""The compiled loops of decoding, each against its definition."""

import numpy as np
import pytest

from fedprune.methods.logs import InputLogs
from fedprune.methods.near import FINE, Lists, count_wrong, gather, match, transpose
from fedprune.methods.scan import Rows, column_counts, split, sweep


def to_words(flags):
    """Return rows of bits as rows of words."""
    padded = np.zeros((flags.shape[0], -(-flags.shape[1] // 64) * 64), dtype=bool)
    padded[:, : flags.shape[1]] = flags
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def to_flags(words, width):
    """Undo `to_words`, after checking that the padding is zero."""
    flags = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)
    assert not flags[:, width:].any()
    return flags[:, :width]


@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (254, 65), (256, 130), (600, 100)])
def test_column_counts(shape):
    flags = np.random.default_rng(0).random(shape) < 0.7
    counts = np.full(shape[1], -1, dtype=np.int32)
    column_counts(to_words(flags), counts)
    assert counts.tolist() == flags.sum(axis=0).tolist()


@pytest.mark.parametrize("shape", [(50, 64), (9, 700), (3, 40_000)])
def test_rows_keep_what_they_should(shape):
    rng = np.random.default_rng(1)
    codes = rng.integers(-9000, 9000, shape).astype(np.int16)
    shifts = rng.integers(-6000, 6000, shape[1]).astype(np.int16)
    kept = rng.integers(0, shape[1] + 1, shape[0]).astype(np.int32)
    rows = Rows(kept, np.zeros(shape[0], dtype=np.int32), shape[1] / 18_000)
    above = to_words(np.zeros(shape, dtype=bool))
    sweep(codes, shifts, rows, above)
    moved = codes.astype(int) + shifts
    assert np.array_equal(to_flags(above, shape[1]), moved > rows.levels[:, np.newaxis])
    ties = np.array([np.unique(row, return_counts=True)[1].max() for row in moved])
    off = np.abs((moved > rows.levels[:, np.newaxis]).sum(axis=1) - kept)
    assert (off <= np.maximum(ties, shape[1] // 512)).all()


def test_split_in_three():
    rng = np.random.default_rng(2)
    codes = rng.integers(-9000, 9000, (40, 300)).astype(np.int16)
    shifts = rng.integers(-6000, 6000, 300).astype(np.int16)
    bands = rng.integers(2, 2000, 300).astype(np.int16)
    rows = Rows(np.full(40, 150, np.int32), np.zeros(40, np.int32), 0.02)
    above, near = (to_words(np.zeros((40, 300), dtype=bool)) for _ in range(2))
    split(codes, shifts, bands, rows, above, near)
    away = codes.astype(int) + shifts - rows.levels[:, np.newaxis]
    assert np.array_equal(to_flags(above, 300), away > bands)
    assert np.array_equal(to_flags(near, 300), np.abs(away) <= bands)


def lists_of(near):
    """Return empty lists with the starts that these flags give."""
    starts = np.concatenate(([0], np.cumsum(near.sum(axis=1))))
    return Lists(starts, np.empty(near.sum(), np.int32), np.empty(near.sum(), np.int32))


def test_lists_hold_the_near_weights():
    rng = np.random.default_rng(3)
    near, mask = rng.random((30, 100)) < 0.2, rng.random((30, 100)) < 0.5
    logs = rng.integers(-(1 << 28), 1 << 28, near.shape)
    codes = (logs + (1 << (FINE - 1))) >> FINE
    rest = (logs - (codes << FINE)).astype(np.int16)
    rows, columns, kept = lists_of(near), lists_of(near.T), np.empty(near.sum(), dtype=bool)
    gather(codes.astype(np.int16), rest, to_words(near), to_words(mask), rows, kept)
    assert rows.logs.tolist() == logs[near].tolist()
    assert rows.others.tolist() == np.nonzero(near)[1].tolist()
    assert kept.tolist() == mask[near].tolist()
    starts = columns.starts.copy()
    transpose(rows, columns)
    assert columns.starts.tolist() == starts.tolist()
    assert columns.logs.tolist() == logs.T[near.T].tolist()
    assert columns.others.tolist() == np.nonzero(near.T)[1].tolist()


def test_levels_lie_between_the_ordered_weights():
    rng = np.random.default_rng(4)
    near = rng.random((200, 60)) < 0.3
    rows = lists_of(near)
    rows.others[:] = np.nonzero(near)[1]
    rows.logs[:] = rng.integers(-1000, 1000, rows.logs.size)
    shifts = rng.integers(-500, 500, 60).astype(np.int32)
    sizes = near.sum(axis=1)
    keep = rng.integers(-1, sizes + 2).astype(np.int32)
    before = rng.integers(-1000, 1000, 200).astype(np.int32)
    levels = before.copy()
    off = match(rows, shifts, levels, keep)
    expected_off = 0
    for line in range(200):
        part = slice(rows.starts[line], rows.starts[line + 1])
        moved = np.sort(rows.logs[part] + shifts[rows.others[part]])[::-1]
        expected_off += (moved > before[line]).sum() != keep[line]
        if keep[line] <= 0:
            expected = max(moved[0], before[line])
        elif keep[line] >= moved.size:
            expected = min(moved[-1] - 1, before[line])
        elif moved[keep[line] - 1] == moved[keep[line]]:
            continue  # a tie at the threshold: no level keeps as many
        else:
            expected = (int(moved[keep[line] - 1]) + int(moved[keep[line]])) // 2
        assert levels[line] == expected
    assert off == expected_off


def test_wrong_sides_are_counted():
    rng = np.random.default_rng(5)
    near = rng.random((20, 50)) < 0.4
    rows = lists_of(near)
    rows.others[:] = np.nonzero(near)[1]
    rows.logs[:] = rng.integers(-1000, 1000, rows.logs.size)
    shifts, levels = (rng.integers(-500, 500, n).astype(np.int32) for n in (50, 20))
    kept = rng.random(rows.logs.size) < 0.5
    wrong = np.full(20, 7)
    count_wrong(rows, shifts, levels, kept, wrong)
    lines = np.nonzero(near)[0]
    differs = (rows.logs + shifts[rows.others] > levels[lines]) != kept
    assert wrong.tolist() == (7 + np.bincount(lines, weights=differs, minlength=20)).tolist()


def test_logarithms_are_fixed_point():
    rng = np.random.default_rng(6)
    weight, start = rng.standard_normal((30, 90)).astype(np.float32), rng.standard_normal(90)
    logs = InputLogs([weight[:10], weight[10:]], start)
    exact = np.log(np.abs(weight).astype(np.float64)) + start
    exact -= exact.mean(axis=1, keepdims=True)
    fixed = (logs.codes.astype(int) << FINE) + logs.rest
    assert np.abs(fixed / (1 << 26) - exact).max() < 1e-8
    assert (np.abs((logs.codes > logs.levels[:, np.newaxis]).sum(axis=1) - 45) <= 1).all()


def test_tabled_thresholds_keep_as_many():
    weight = np.random.default_rng(7).standard_normal((500, 40)).astype(np.float32)
    logs = InputLogs([weight])
    kept = np.random.default_rng(8).integers(0, 501, 40).astype(np.int32)
    kept[:3] = 0, 500, 250
    shifts, densities = logs.thresholds.guess(kept)
    found = (logs.codes + shifts > logs.levels[:, np.newaxis]).sum(axis=0)
    assert np.abs(found - kept).max() <= 3
    assert (densities > 0).all()
