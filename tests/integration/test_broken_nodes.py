"""Nodes that cannot take part say why, by name and without what is private; the run goes on."""

import json
import logging
import os
import shutil

import pytest

from client_app.app import app
from fedprune.errors import QuorumError
from fedprune.models.embedded import demo_model_path
from tests.support.grid import LocalGrid
from tests.support.jobs import job, opt_folder, refusals

PATIENT = "mrs-smith-1950"
TEXT = f"{PATIENT} was seen at noon, and nothing was found. "
GOOD = 2


def rows(folder, count: int = 60, key: str = "text"):
    folder.mkdir(parents=True)
    lines = [json.dumps({key: f"{TEXT * 6}{row}"}) for row in range(count)]
    (folder / f"{PATIENT}.jsonl").write_text("\n".join(lines))
    return folder


def demo_without(folder, *names: str):
    shutil.copytree(demo_model_path(), folder)
    for name in names:
        (folder / name).unlink()
    return folder


def broken(folder, good) -> dict[str, tuple[dict, str]]:
    """Return site -> what is wrong with its settings, and what its operator must read."""
    (folder / "empty").mkdir()
    (folder / "few").mkdir()
    (folder / "few" / f"{PATIENT}.txt").write_text(TEXT)
    (folder / "latin").mkdir()
    (folder / "latin" / f"{PATIENT}.txt").write_bytes(b"\xe9t\xe9 " * 100)
    (folder / "torn").mkdir()
    (folder / "torn" / f"{PATIENT}.jsonl").write_text('{"text": "' + TEXT)
    (folder / "alone" / PATIENT).mkdir(parents=True)
    (folder / "alone" / f"{PATIENT}.md").write_text("x")
    truncated = demo_without(folder / "truncated")
    os.truncate(truncated / "model.safetensors", 100_000)
    own = {"data-path": str(good)}
    return {
        "few": ({"data-path": str(folder / "few")}, "Calibration needs 2 samples of 48"),
        "missing": ({"data-path": str(folder / PATIENT)}, "`data-path` does not exist"),
        "unnamed": ({}, "node_config has no `data-path`"),
        "empty": ({"data-path": str(folder / "empty")}, "`data-path` holds no text"),
        "latin": ({"data-path": str(folder / "latin")}, "A file of its texts is not UTF-8"),
        "torn": ({"data-path": str(folder / "torn")}, "is not a JSON object"),
        "column": (
            {"data-path": str(rows(folder / "column", key="note"))},
            "no text in its field. Set `data.text_key` (a node's own: `text-key`)",
        ),
        "weights": (
            {**own, "model-path": str(opt_folder(folder / "other"))},
            "its model's weights differ",
        ),
        "nowhere": ({**own, "model-path": str(folder / PATIENT)}, "'<model-path>' is not a folder"),
        "no-model": (
            {**own, "model-path": str(folder / "alone")},
            "'<model-path>' has no configuration: looked for config.json",
        ),
        "no-weights": (
            {**own, "model-path": str(demo_without(folder / "w", "model.safetensors"))},
            "'<model-path>' has no weights",
        ),
        "no-tokenizer": (
            {**own, "model-path": str(demo_without(folder / "t", "tokenizer.json"))},
            "'<model-path>' has no tokenizer",
        ),
        "cut": (
            {**own, "model-path": str(truncated)},
            "'<model-path>/model.safetensors' cannot be loaded: it is truncated",
        ),
        "settings": (
            {**own, "layer-fraction": 2, "threads": "all"},
            "`layer-fraction` in the node's --node-config must be a number above 0",
        ),
        "device": ({**own, "device": "cuda:99"}, "(a node's own: `device`) must be a device of"),
        "careful": ({**own, "min-samples": 512}, "`min-samples` in the node's --node-config is"),
        "masks-not": ({**own, "may-send": "sums"}, "this job asks for masks"),
    }


def test_every_broken_node_is_refused_by_name_and_the_run_goes_on(tmp_path, caplog):
    good = rows(tmp_path / "good")
    table = broken(tmp_path, good)
    nodes = {n: {"site": f"good-{n}", "data-path": str(good)} for n in range(GOOD)}
    nodes[1]["dat-path"] = "a typo"
    nodes |= {GOOD + n: {"site": site, **own} for n, (site, (own, _)) in enumerate(table.items())}
    settings = {
        n: {"partition-id": n, "num-partitions": len(nodes), **own} for n, own in nodes.items()
    }
    grid = LocalGrid(app, len(nodes), node_configs=settings)
    with caplog.at_level(logging.INFO, "flwr"):
        results = job(
            tmp_path / "run",
            "data=node",
            f"data.heldout_path={good}",
            f"strategy.min_clients={GOOD}",
            grid=grid,
        )
    assert [client["name"] for client in results["clients"]] == [
        f"'good-{n}' (partition {n})" for n in range(GOOD)
    ]
    refused = refusals(results)
    for number, (site, (_, words)) in enumerate(table.items(), start=GOOD):
        assert words in refused[f"'{site}' (partition {number})"], site
    assert len(refused) == len(table)
    assert "`threads`" in refused[f"'settings' (partition {list(table).index('settings') + GOOD})"]
    # The operator reads the rest in the node's own log; nothing of it leaves the node.
    assert f"{PATIENT}.jsonl' line 1" in caplog.text
    told = json.dumps(refused)
    assert PATIENT not in told and "noon" not in told and str(tmp_path) not in told
    for message in grid.sent:
        assert PATIENT not in str(message.content) or "heldout" in str(message.content)
    assert "'dat-path' in the node's --node-config is no key" in caplog.text
    assert "Did you mean 'data-path'?" in caplog.text


@pytest.mark.parametrize("key", ["min-samples", "min-tokens"])
def test_a_server_cannot_ask_for_less_after_the_handshake(tmp_path, key):
    """The limits hold for each request: the configuration comes with every one of them."""

    class Sly(LocalGrid):
        def deliver(self, message):
            if message.metadata.message_type == "train.prune":
                record = message.content.config_records["config"]
                text = str(record["config-yaml"])
                record["config-yaml"] = text.replace(
                    "num_calibration_samples: 2", "num_calibration_samples: 1"
                )
            return super().deliver(message)

    limits = {"min-samples": 2, "min-tokens": 96}
    nodes = {0: {"partition-id": 0, "num-partitions": 1, key: limits[key]}}
    grid = Sly(app, 1, node_configs=nodes)
    with pytest.raises(QuorumError, match=f"`{key}` in the node's --node-config is {limits[key]}"):
        job(tmp_path / "run", grid=grid)


def test_a_server_cannot_survey_a_node_in_a_job_about_masks(tmp_path):
    class Sly(LocalGrid):
        def deliver(self, message):
            if message.metadata.message_type == "train.prune":
                message.content.config_records["order"]["exchange"] = "survey"
            return super().deliver(message)

    grid = Sly(app, 1, node_configs={0: {"partition-id": 0, "may-send": "masks"}})
    with pytest.raises(QuorumError, match="asks for prune, the order is about another exchange"):
        job(tmp_path / "run", grid=grid)


def test_a_node_calibrates_on_no_more_than_its_operator_allows(tmp_path):
    nodes = {0: {"partition-id": 0, "num-partitions": 2, "max-samples": 1}}
    results = job(tmp_path / "run", grid=LocalGrid(app, 2, node_configs=nodes))
    assert [client["samples"] for client in results["clients"]] == [1, 2]
    assert [len(client["sample_ids"]) for client in results["clients"]] == [1, 2]
