"""Hundreds of virtual clients in one process share what they have in common."""

from pathlib import Path

import pytest

from fedprune.data import partitions, stdlib
from tests.support.jobs import job

_CLIENTS = 200


@pytest.mark.slow
def test_texts_are_read_and_shared_once(tmp_path, monkeypatch):
    read: list[Path] = []
    shared: list[int] = []
    walk, partitioner = stdlib._sources, partitions._partitioner

    def counted(root: Path):
        read.append(root)
        return walk(root)

    def counted_partitioner(count: int, *how):
        shared.append(count)
        return partitioner(count, *how)

    monkeypatch.setattr(stdlib, "_sources", counted)
    monkeypatch.setattr(partitions, "_partitioner", counted_partitioner)
    options = ("data.partition=iid", "pruner.num_calibration_samples=1", "pruner.seq_len=16")
    results = job(tmp_path / "run", *options, clients=_CLIENTS)
    assert len(results["clients"]) == _CLIENTS
    assert len({client["sample_ids"][0] for client in results["clients"]}) > 0.9 * _CLIENTS
    assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=1e-3)
    assert len(read) <= 1  # none where an earlier test has read them
    assert shared == [_CLIENTS]
