"""Nothing of a node's texts leaves it in a federation of real processes, nor lies in its logs."""

import json

import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.data.clients import client_samples
from fedprune.data.texts import OwnTexts, load_documents
from fedprune.models.loading import load_model
from fedprune.pruning.blocks import BlockWalk
from tests.support import planted
from tests.support.federation import CONNECTION, Federation
from tests.support.jobs import QUIET, opt_folder
from tests.support.planted import found_in, sentence
from tests.support.relay import Relay
from tests.support.services import free_port

pytestmark = pytest.mark.e2e

_BREAK_TOKENIZER = """
import sys
if "flwr-clientapp" in " ".join(sys.argv):
    from transformers import PreTrainedTokenizerBase
    def encode(self, text, *args, **kwargs):
        raise ValueError(f"odd input {text!r}")
    PreTrainedTokenizerBase.encode = encode
"""


def private_needles(words, path) -> dict[str, list[bytes]]:
    """What the healthy node must keep to itself, computed as it does."""
    config = config_from_overrides([*QUIET, *words])
    loaded = load_model(config.model)
    documents = load_documents(config.data, "train", OwnTexts(str(path), None, None))
    samples = [s.tokens for s in client_samples(config, documents, loaded.tokenizer, 0, 2)]
    walk = BlockWalk(loaded, samples, torch.device("cpu"))
    walk.advance({})
    ids = loaded.tokenizer.encode(f"so {sentence(0)}", add_special_tokens=False)
    inner = torch.tensor(ids[1:])
    return planted.words_needles() | {
        "ids": planted.id_needles([*samples, inner]),
        "states": planted.state_needles(walk.hidden),
    }


@pytest.mark.slow
def test_every_byte_of_a_federation(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    opt_folder(place / "opt")
    sites = [planted.write_texts(place / "sites" / str(site), site) for site in range(2)]
    (place / "server.txt").write_text("A public text of the server about lists. " * 60)
    (place / "site").mkdir()
    (place / "site" / "sitecustomize.py").write_text(_BREAK_TOKENIZER)
    words = [f"model={place / 'opt'}", "data=node", f"data.heldout_path={place / 'server.txt'}"]
    needles = private_needles(words, sites[0])
    nodes = [
        f'partition-id={n} num-partitions=2 site="clinic-{n}" data-path="{path}"'
        for n, path in enumerate(sites)
    ]
    monkeypatch.setenv("FEDPRUNE_LOG", "json")
    folder, port = tmp_path / "federation", free_port()
    folder.mkdir()
    with Relay(port) as wire:
        federation = Federation(folder, nodes, False, port=port, fleet=[wire.address] * 2)
        odd = federation.nodes[1].executor.environment
        odd["PYTHONPATH"] = f"{place / 'site'}:{odd['PYTHONPATH']}"
        with federation:
            connection = f"federation.connection={CONNECTION}"
            done = federation.fedprune("run", *QUIET, *words, "schedule=one_shot", connection)
            shown = federation.fedprune("status")
        check_course(federation, done, shown)
        check_bytes(federation, [done, shown], wire, needles)


def check_course(federation, done, shown) -> None:
    """The run went as it should, and its logs say so line by line."""
    assert done.returncode == 0, done.stdout + done.stderr + federation.logs()
    assert "pruning 0/" in done.stderr and "RuntimeError" not in done.stderr
    assert "is refused: it failed: ValueError on the node" in done.stderr
    assert "· done" in shown.stdout and "1 failed" in shown.stdout, shown
    (log,) = federation.folder.glob("runs/*/run.log")
    (server,) = lines(log.read_text(), "taking part")
    assert server["role"] == "server" and server["folder"] and len(server["job"]) == 8
    (odd,) = lines(federation.nodes[1].executor.log, "query.handshake failed")
    assert (odd["role"], odd["node"]) == ("client", "'clinic-1' (partition 1)")
    assert (odd["run"], odd["job"]) == (server["run"], server["job"])
    assert "ValueError at client_app.guard:" in odd["message"]


def lines(log: str, words: str) -> list[dict]:
    """Return the lines in JSON whose message has these words."""
    found = [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
    return [line for line in found if words in line["message"]]


def check_bytes(federation, commands, wire, needles) -> None:
    """Nothing private is anywhere but in the sites' own folders."""
    captured = {f"connection {n}": bytes(data) for n, data in enumerate(wire.sent)}
    assert sum(map(len, captured.values())) > 10_000
    said = "".join(command.stdout + command.stderr for command in commands)
    captured["screens"] = said.encode()
    captured |= planted.files_below(federation.folder)
    found = {(where, kind) for where, data in captured.items() for kind in found_in(data, needles)}
    assert not found
