"""Statistics folders of given samples, made by the code of clients and server without messages."""

from pathlib import Path

import torch

from fedprune.config import config_from_overrides, to_yaml
from fedprune.methods.collection import Collection
from fedprune.methods.exchange import BlockExchange, BlockTask, Contributor
from fedprune.methods.public_model import PublicModel
from fedprune.methods.statistics_folder import (
    Manifest,
    Participant,
    StatisticsFolder,
    write_block,
    write_manifest,
)
from fedprune.models.fingerprint import fingerprint
from fedprune.models.loading import LoadedModel
from fedprune.pruning.blocks import BlockWalk, input_groups
from fedprune.pruning.groups import BlockSpec

DENSE = BlockSpec(0.0, "unstructured", "row")


def public(loaded: LoadedModel) -> PublicModel:
    return PublicModel.of(loaded, inputs=input_groups(loaded))


def drawn(loaded: LoadedModel, clients: int, samples: int = 2, tokens: int = 24, seed: int = 0):
    """Return samples of random tokens, a list a client."""
    rows = loaded.model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(seed)
    return [
        [torch.randint(1, rows, (tokens,), generator=draw) for _ in range(samples)]
        for _ in range(clients)
    ]


def answers(loaded: LoadedModel, exchange: BlockExchange, samples, spec=DENSE) -> list[bytes]:
    """Return what a client with these samples says of every block."""
    walk = BlockWalk(loaded, samples)
    return [exchange.answer(walk, spec, False).payload for _ in walk.dense_blocks()]


def collected(
    folder: Path, loaded: LoadedModel, clients, *overrides: str, first: int = 0, kinds=None
) -> StatisticsFolder:
    """Collect from clients with these samples, numbered from ``first``."""
    config = config_from_overrides(["strategy=collect", "model=demo", *overrides])
    exchange = Collection(config, kinds or config.strategy.kinds)
    model = public(loaded)
    sums = [exchange.aggregator(BlockTask(model, block)) for block in range(model.num_blocks)]
    for number, samples in enumerate(clients):
        told = Contributor(f"client {first + number}", 1, sum(map(len, samples)))
        for one, payload in zip(sums, answers(loaded, exchange, samples), strict=True):
            assert len(payload) <= exchange.most_bytes(model, one.task.block)
            one.add(one.check(payload, told), told)
    for block, one in enumerate(sums):
        write_block(folder, block, one.close().arrays)
    people = tuple(
        Participant(f"client {first + n}", "", first + n, 9, len(s), sum(map(len, s)))
        for n, s in enumerate(clients)
    )
    manifest = Manifest(
        fingerprint(loaded),
        loaded.model.config.model_type,
        loaded.layout.prefix,
        to_yaml(config),
        (f"run-{first}-{len(clients)}",),
        ("text",),
        tuple(exchange.parts),
        model.inputs,
        model.shapes,
        people,
    )
    write_manifest(folder, manifest)
    return StatisticsFolder.open(folder)
