"""Who is not let in, and what a node that is in cannot do: with TLS and real processes."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message
from flwr.proto.message_pb2 import ObjectTree

from client_app.app import app
from fedprune.records import PruneReply, prune_record
from server_app.job import run_job
from tests.e2e.test_flower_runs import SMALL, sidecar
from tests.support.certificates import node_key
from tests.support.federation import Federation
from tests.support.grid import LocalGrid
from tests.support.guests import Guest
from tests.support.jobs import refusals
from tests.support.services import until
from tests.support.superlink import named

MASKS = "fedprune.masks.v2"

pytestmark = pytest.mark.e2e

PLANTED = b"what nobody was asked to say; "
MASKS_ONLY = ["evaluation.local_only=false", "evaluation.centralized=false"]
HONEST = 2
KINDS = ("garbage", "too-long", "replayed", "other-job", "another-node", "no-message")
SITES = HONEST + len(KINDS)


def settings(number: int, site: str) -> dict[str, str | int]:
    return {"partition-id": number, "num-partitions": SITES, "site": site}


def node_config(values: dict[str, str | int]) -> str:
    return " ".join(
        f'{key}="{v}"' if isinstance(v, str) else f"{key}={v}" for key, v in values.items()
    )


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    configs = [node_config(settings(number, f"site-{number}")) for number in range(HONEST)]
    with Federation(tmp_path_factory.mktemp("federation"), nodes=configs) as running:
        yield running


def misbehave(kind: str, victim: int):
    """Return how a guest answers: as the others to the handshake, as it likes to the rest."""

    def answer(guest: Guest, asked: Message, honest: Message) -> None:
        if asked.metadata.message_type != "train.prune":
            guest.send(honest)
            return
        if kind == "garbage":
            sizes = {i: len(a.data) for i, a in enumerate(honest.content["arrays"].values())}
            guest.send(guest.of(asked, nonsense(sizes)))
            guest.send(guest.of(asked, nonsense(dict.fromkeys(sizes, 50))))  # and once more
        elif kind == "too-long":
            guest.send(guest.of(asked, nonsense({0: 20_000_000})))
        elif kind == "replayed":
            guest.send(guest.earlier, head=honest)
        elif kind == "other-job":
            guest.send(guest.of(asked, honest.content, group_id="f" * 32), head=honest)
        elif kind == "another-node":
            guest.send(guest.of(asked, honest.content, src_node_id=victim), head=honest)
        else:
            unasked = guest.of(asked, nonsense({0: 70}))
            told = {"src_node_id": 1, "dst_node_id": 1, "reply_to_message_id": ""}
            guest.send(unasked, head=guest.of(asked, unasked.content, **told))
            name, record = named(ConfigRecord({"said": PLANTED.decode()}).deflate())
            guest.send_objects(honest, {name: record}, ObjectTree(object_id=name))

    return answer


def nonsense(sizes: dict[int, int]):
    blocks = {block: (PLANTED * (size // len(PLANTED) + 1))[:size] for block, size in sizes.items()}
    return prune_record(PruneReply(blocks, 1.0, 1, 0, 1), "fedprune.masks.v2")


@contextlib.contextmanager
def guests(federation: Federation, folder: Path) -> Iterator[list[Guest]]:
    """Register a guest of every kind and let them connect."""
    victim = federation.listed()[0].node_id
    found = []
    for number, kind in enumerate(KINDS, start=HONEST):
        key, public = node_key(folder, kind)
        federation.register(public, kind)
        told = settings(number, kind)
        answer = misbehave(kind, victim)
        found.append(Guest(federation.address, federation.ca.path, key, told, answer))
    for guest in found:
        guest.start()
    try:
        until(lambda: federation.online() == SITES, 180, "all guests are in", poll=0.2)
        yield found
    finally:
        for guest in found:
            guest.over.set()
        for guest in found:
            guest.join(20)


@pytest.mark.slow
def test_registered_nodes_that_misbehave_are_refused_by_name_and_the_run_goes_on(
    federation, tmp_path
):
    out = tmp_path / "out"
    options = [*SMALL, *MASKS_ONLY, "strategy.min_clients=2", "strategy.rejoin=0"]
    with guests(federation, tmp_path) as found:
        run = federation.run(out, *options)
        until(lambda: run.poll() is not None, 900, run.err + federation.logs())
    said = run.out + run.err
    assert [guest.failure for guest in found] == [None] * len(KINDS)
    assert run.returncode == 0, said + federation.logs()

    results = json.loads((out / "results.json").read_text())
    refused = refusals(results)
    names = {f"'{kind}' (partition {n})": kind for n, kind in enumerate(KINDS, start=HONEST)}
    assert set(refused) == {*names, "nobody who was asked"}
    words = {names[name]: text for name, text in refused.items() if name in names}
    assert "a message of arrays starts with a header of" in words["garbage"]
    assert "more bytes than this model's can have" in words["too-long"]
    assert "another request" in words["replayed"]
    assert "another job" in words["other-job"]
    assert "another node" in words["another-node"]
    assert "no message" in words["no-message"]
    assert refused["nobody who was asked"].startswith("1 message")
    for name in names:
        assert said.count(f"{name}: reply refused") == 1

    configs = {number: settings(number, f"site-{number}") for number in range(HONEST)}
    alone = LocalGrid(app, HONEST, node_configs=configs)
    words = " ".join([*options, "strategy.wait=1"])
    run_job(alone, {"overrides": words, "output-dir": str(tmp_path / "alone")}, 11)
    assert sidecar(out) == sidecar(tmp_path / "alone")

    planted = PLANTED.decode().strip()
    assert planted not in said + federation.logs()
    for path in filter(Path.is_file, out.rglob("*")):
        assert PLANTED.strip() not in path.read_bytes(), path
    assert b"Traceback" not in os.fsencode(federation.server_executor.log)
