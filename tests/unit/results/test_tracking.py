"""Trackers: real files where the library is there, nothing private, and no run is lost."""

import importlib.util
import sys
import types

import pytest

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.results.build import LinearFigures
from fedprune.results.ledger import Entry, Ledger
from fedprune.results.tracking import Tracking, check_tracker, final_figures, public_config

RESULTS = {
    "sparsity": {"overall": 0.5},
    "clients": [{"name": "site-a", "sample_ids": ["secret"]}],
    "ledger": {"bytes_up": 30, "bytes_down": 20, "entries": [{"client": "site-a"}]},
    "agreement": {"pairwise": 0.9},
    "seconds": {"total": 3.5},
    "perplexity": {
        "news": {
            "dense": 10.0,
            "pruned": float("inf"),
            "centralized": None,
            "local_only": {"best": 1.0, "mean": 2.0, "worst": 3.0, "clients": {"site-a": 2.0}},
        }
    },
}


def figures(zeros=40, agreement=0.75):
    return LinearFigures("model.layers.0.up", 100, zeros, 3, [], agreement, None)


def ledger():
    return Ledger(
        [Entry(1, "prune", "site-a", 20, 30, 0.1), Entry(1, "prune", "b", 0, 0, 0.1, refused="x")]
    )


def tracked(config, folder):
    with Tracking(config, folder) as tracking:
        tracking.block(1, [figures(), figures(80, None)], ledger())
        tracking.block(2, [figures(zeros=20)], ledger())
        tracking.finish(RESULTS)


def test_tensorboard_gets_steps_and_the_end(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked(config_from_overrides(["tracking=tensorboard", "tracking.project=mine"]), tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard" / "mine"))
    read.Reload()

    def scalars(tag):
        return [(event.step, event.value) for event in read.Scalars(tag)]

    assert scalars("block/sparsity") == [(1, pytest.approx(0.6)), (2, pytest.approx(0.2))]
    assert scalars("block/agreement") == [(1, 0.75), (2, 0.75)]
    assert scalars("block/clients") == [(1, 3), (2, 3)]
    assert scalars("clients/refused_replies") == [(1, 1), (2, 1)]
    assert scalars("bytes/up") == [(1, 30), (2, 30), (3, 30)]
    assert scalars("perplexity/news/dense") == [(3, 10.0)]
    assert b"sparsity: 0.5" in next(tmp_path.rglob("hparams.yml")).read_bytes()
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"site-a" not in everything and b"secret" not in everything


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_the_others_run_offline_where_they_are_installed(tmp_path, monkeypatch, caplog, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracked(config_from_overrides([f"tracking={name}"]), tmp_path)
    assert "left out" not in caplog.text
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert everything and not any(b"site-a" in content for content in everything)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_library_that_is_not_there_is_refused_with_the_way_out(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(ConfigError, match=f"'{name}' needs a library.*pip install {name}`"):
        check_tracker(config_from_overrides([f"tracking={name}"]).tracking)


def test_no_tracker_needs_no_library_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    config = config_from_overrides([])
    check_tracker(config.tracking)
    tracked(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def failing(**methods):
    """Return a module in the place of wandb whose run fails where it is told to."""

    def fail(*arguments, **options):
        raise RuntimeError("no network")

    run = types.SimpleNamespace(log=lambda *a, **k: None, finish=lambda: None)
    for name in methods:
        setattr(run, name, fail)
    module = types.ModuleType("wandb")
    module.init = fail if "init" in methods else lambda **options: run
    module.config = types.SimpleNamespace(update=lambda *a, **k: None)
    return module


@pytest.mark.parametrize(
    ("where", "what"), [("init", "start"), ("log", "take values"), ("finish", "finish")]
)
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    monkeypatch, tmp_path, caplog, where, what
):
    monkeypatch.setitem(sys.modules, "wandb", failing(**{where: True}))
    with caplog.at_level("WARNING", "flwr"):
        tracked(config_from_overrides(["tracking=wandb"]), tmp_path)
    assert caplog.text.count("left out: no network") == 1
    assert f"could not {what}" in caplog.text


def test_a_run_that_fails_closes_its_tracker(monkeypatch, tmp_path):
    closed = []
    module = failing()
    run = module.init()
    run.finish = lambda: closed.append(True)
    monkeypatch.setitem(sys.modules, "wandb", module)
    config = config_from_overrides(["tracking=wandb"])
    with pytest.raises(ValueError, match="lost"), Tracking(config, tmp_path):
        raise ValueError("lost")
    assert closed == [True]


def test_the_configuration_shows_no_places(tmp_path):
    (tmp_path / "texts").mkdir()
    paths = [
        f"model={tmp_path}",
        f"data={tmp_path / 'texts'}",
        f"data.heldout_path={tmp_path / 'texts'}",
        f"evaluation.datasets={tmp_path / 'texts'}",
        f"output_dir={tmp_path / 'out'}",
    ]
    shown = public_config(config_from_overrides(paths))
    assert not [key for key, value in shown.items() if str(tmp_path) in str(value)]
    assert shown["sparsity"] == 0.5 and shown["schedule.blocks_per_message"] == "null"
    hub = public_config(config_from_overrides(["model=org/base", "data=org/texts"]))
    assert hub["model.path"] == "org/base" and hub["data.path"] == "org/texts"


def test_final_figures_are_numbers_of_all_clients_together():
    found = final_figures(RESULTS)
    assert found["perplexity/news/local_worst"] == 3.0 and found["agreement"] == 0.9
    assert "perplexity/news/pruned" not in found  # infinite
    assert not any("site" in name for name in found)
    close = {"fidelity": {"text": {"pruned": {"kl": 0.25, "top1": 0.5}}}}
    assert final_figures(RESULTS | close)["kl/text/pruned"] == 0.25
    assert final_figures(RESULTS | {"agreement": None}).get("agreement") is None
