"""Suggestions: close words, last parts, and silence where nothing is close."""

import pytest

from fedprune.config.suggest import did_you_mean, show

KEYS = ["sparsity", "pruner.seq_len", "evaluation.seq_len", "strategy.min_clients", "model.path"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("sparsty", " Did you mean 'sparsity'?"),
        ("SPARSITY", " Did you mean 'sparsity'?"),
        ("seq-len", " Did you mean 'pruner.seq_len' or 'evaluation.seq_len'?"),
        ("minclients", " Did you mean 'strategy.min_clients'?"),
        ("pruner.sequence_len", " Did you mean 'pruner.seq_len'?"),
        ("model/path", " Did you mean 'model.path'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_hint(word, hint):
    assert did_you_mean(word, KEYS) == hint


def test_show_spells_values_as_yaml_and_bounds_them():
    assert [show(v) for v in (None, True, 1.5, "a")] == ["null", "true", "1.5", "'a'"]
    assert len(show(["x" * 10_000] * 1000)) < 1000
    assert show(16**9999) == "a number of 39997 bits"
