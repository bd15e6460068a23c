"""Nothing of a node's texts leaves it: not in messages, files, logs or errors, of no strategy."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.common.logger import log
from flwr.common.serde import message_to_proto

import client_app.app as handlers
from client_app.session import Session
from fedprune.cli import inline, main
from fedprune.disk import home
from fedprune.errors import DataError
from fedprune.wire import arrays
from tests.support import planted
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, opt_folder, small_messages
from tests.support.planted import WORDS, found_in, sentence

JOBS = {
    "votes": ("schedule.blocks_per_message=1",),
    "decoded": ("schedule=iterative", "strategy.decode=true", "pruner.group=row"),
    "survivors": ("strategy=fedspallm", "pruner=sparsegpt", "schedule.blocks_per_message=1"),
    "sums": ("strategy=fedstats", "schedule=iterative", "allocation=owl"),
    "moments": ("strategy=fedhessian", "schedule=iterative", "pruner=sparsegpt"),
}
MEASURED = (
    "evaluation.local_only=true",
    "evaluation.federated=true",
    "evaluation.seq_len=48",
    "evaluation.max_windows=2",
)
FAILING = {
    2: ("query.handshake", "report"),
    3: ("train.prune", "Session"),
    4: ("query.deliver", "Scratch"),
    5: ("query.fetch", "fetch"),
    6: ("evaluate.local", "evaluate_local"),
    7: ("evaluate.federated", "evaluate_own_texts"),
    8: ("query.forget", "Scratch"),
}
"""Partition -> the message at which it fails, and what is replaced for that."""


class Tap(LocalGrid):
    """Keeps every byte that a node sends, and looks at what nodes keep."""

    def __init__(self, app, nodes, node_configs):
        super().__init__(app, nodes, node_configs=node_configs)
        self.sent_bytes: list[bytes] = []
        self.samples, self.hidden, self.modes = [], [], set()
        self.failed: set[str] = set()

    def deliver(self, message: Message) -> Message | None:
        partition, kind = message.metadata.dst_node_id - 100, message.metadata.message_type
        failing = FAILING.get(partition, ("", ""))
        if kind == failing[0]:
            self.failed.add(kind)
            with _failing(failing[1]):
                reply = super().deliver(message)
            assert reply.has_error()
        else:
            reply = super().deliver(message)
        self.sent_bytes.append(message_to_proto(reply).SerializeToString())
        self._look(message.metadata.group_id)
        return reply

    def _look(self, job: str) -> None:
        for path in (home() / "nodes" / f"job-{job}").rglob("*"):
            self.modes.add((path.is_dir(), path.stat().st_mode & 0o777))
            if path.name == "samples.safetensors" and len(self.samples) < 8:
                self.samples += planted.kept_tensors(path)
            if path.name.startswith("hidden-") and not path.name.startswith("hidden-00000"):
                self.hidden += planted.kept_tensors(path)


@contextmanager
def _failing(name: str):
    """Let a handler fail with all that it knows, as a library that quotes its input does."""

    def fail(*args, **kwargs):
        try:
            raise ValueError(f"odd input {sentence(0)!r}")
        except ValueError as error:
            raise RuntimeError(f"'{planted.FILE_WORD}.txt': {sentence(0)} {[*range(9)]}") from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, name, fail)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small model, texts of nine healthy sites and of two with damaged files."""
    folder = tmp_path_factory.mktemp("planted")
    opt_folder(folder / "opt")
    for site in range(9):
        planted.write_texts(folder / "sites" / str(site), site)
    planted.broken_line(folder / "sites" / "9")
    planted.broken_encoding(folder / "sites" / "10")
    (folder / "server.txt").write_text("A public text of the server about lists of numbers. " * 60)
    return folder


class Watched:
    """A run on the command line, of which every byte is kept."""

    def __init__(self, place: Path, folder: Path, clients: int, patch, capfd, log: str) -> None:
        self.folder, self.log = folder, log
        configs = {
            site: {
                "partition-id": site,
                "num-partitions": clients,
                "site": f"clinic {site}",
                "data-path": str(place / "sites" / str(site)),
            }
            for site in range(clients)
        }
        patch.setenv("FEDPRUNE_LOG", log)
        # Packed arrays would hide what is in them.
        patch.setattr(arrays, "_pack", lambda values: None)
        patch.setattr(inline, "InlineGrid", lambda app, nodes, run_id: self._grid(app, configs))
        self._words = [
            *("run", "federation.backend=inline", f"federation.num_clients={clients}", *QUIET),
            *(f"model={place / 'opt'}", "data=node", f"data.heldout_path={place / 'server.txt'}"),
            f"output_dir={folder}",
        ]
        self._capture = capfd

    def _grid(self, app, configs):
        self.tap = Tap(app, len(configs), configs)
        return self.tap

    def run(self, *words: str) -> int:
        """Run the job and look at it in every way that the command line has."""
        code = main([*self._words, *words])
        for command in ("status", "report", "compare"):
            if code == 0 or command == "status":
                main([command, str(self.folder)])
        main(["status", str(self.folder), "--json"])
        main(["status", str(self.folder), "--metrics"])
        self.screen = "\n".join(self._capture.readouterr()).encode()
        return code

    def captured(self) -> dict[str, bytes]:
        """Return everything that is outside the nodes."""
        messages = {f"message {n}": data for n, data in enumerate(self.tap.sent_bytes)}
        return {"screen": self.screen, **messages, **planted.files_below(self.folder)}

    def leaks(self) -> set[tuple[str, str]]:
        """Return where what was found; names of files may be in a log of this machine's nodes."""
        words, found = planted.words_needles(), set()
        needles = words | {
            "ids": planted.id_needles(self.tap.samples),
            "states": planted.state_needles(self.tap.hidden),
        }
        for where, data in self.captured().items():
            kinds = found_in(data, needles)
            if where == "run.log":
                kinds.discard("file")
                if self.log == "json":
                    kinds |= found_in(planted.without_client_lines(data), {"file": words["file"]})
            found |= {(where, kind) for kind in kinds}
        return found


@pytest.fixture
def watched(place, tmp_path, monkeypatch, capfd):
    """Return what makes a watched run with so many clients, its log as text or JSON."""
    return lambda clients, log: Watched(place, tmp_path / "run", clients, monkeypatch, capfd, log)


@pytest.mark.parametrize("name", JOBS)
def test_no_strategy_lets_private_data_out(watched, name):
    log = "text" if name in ("votes", "sums") else "json"
    run = watched(2, log)
    assert run.run(*JOBS[name], *MEASURED, "strategy.min_clients=2") == 0
    tap = run.tap
    assert tap.samples and tap.hidden, "there is something to look for"
    assert not run.leaks()
    assert tap.modes == {(True, 0o700), (False, 0o600)}
    assert tap.kept() == []
    results = json.loads((run.folder / "results.json").read_text())
    assert [client["sample_ids"] for client in results["clients"]] == [[], []]
    assert not results["ledger"]["refused"] and results["federated_evaluation"]


@pytest.mark.parametrize("log", ["text", "json"])
def test_no_failure_lets_private_data_out(watched, monkeypatch, log):
    small_messages(monkeypatch, 1 << 14)
    monkeypatch.setattr("fedprune.records.requests._LEAST_SEGMENT", 1)
    run = watched(11, log)
    assert (
        run.run("strategy=fedspallm", "strategy.rounds=2", "strategy.ramp=linear", *MEASURED) == 0
    )
    assert run.tap.failed == {kind for kind, _ in FAILING.values()}
    assert not run.leaks()
    screen, text = run.screen.decode(), (run.folder / "run.log").read_text()
    assert "] done" in screen and "fedprune_refused_total" in screen  # it was captured
    assert "warning: 'clinic 3' (partition 3): reply refused in round 1: it failed" in screen
    assert "RuntimeError on the node; its own log has the details" in text
    assert "not a JSON object" in text and "is not UTF-8" in text
    assert "caused by ValueError" in text
    if log == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        (odd,) = [one for one in lines if "train.prune failed" in one["message"]]
        assert odd["role"] == "client" and odd["node"] == "'clinic 3' (partition 3)"
        assert odd["run"] and len(odd["job"]) == 8


def test_every_handler_fails_in_these_tests():
    registered = set(handlers.app._registered_funcs)
    # The node reads no text for segments of a model, keys of secure sums, and what is signed.
    without_texts = {"model", "keys", "shares", "sign", "unmask", "attest"}
    found = registered - {kind for kind, _ in FAILING.values()}
    assert found == {f"query.{kind}" for kind in without_texts}


def test_a_run_that_fails_lets_no_private_data_out(watched):
    run = watched(4, "json")
    assert run.run("schedule=iterative", "strategy.min_clients=3") == 1
    assert (run.folder / "failure.json").exists() and (run.folder / "state").exists()
    assert not run.leaks()


def test_leaks_would_be_found(watched, monkeypatch):
    genuine_report, genuine_record = handlers.report, Session.record

    def report(config, node, *more):
        if node.settings.partition_id == 1:
            log(40, "%s of %s", WORDS[0], planted.FILE_WORD, extra={"role": "server"})
            raise DataError(f"{planted.FILE_WORD}: {WORDS[1]}")
        return genuine_report(config, node, *more)

    def record_with_more(session, *made):
        reply, scratch = genuine_record(session, *made), session.node.scratch
        (samples,) = scratch.glob("samples.*")
        tokens = planted.kept_tensors(samples)[0]
        hidden = [t for p in scratch.glob("hidden-0*") for t in planted.kept_tensors(p)]
        array = Array("uint8", (1,), "x", b"".join(state.numpy().tobytes() for state in hidden))
        reply["more"] = ArrayRecord({"x": array})
        reply["ids"] = ConfigRecord({"ids": str(tokens.tolist())})
        return reply

    monkeypatch.setattr(handlers, "report", report)
    monkeypatch.setattr(Session, "record", record_with_more)
    run = watched(2, "json")
    run.run("schedule.blocks_per_message=1")
    found = run.leaks()
    assert {kind for where, kind in found if where.startswith("message")} == {
        "text",
        "file",
        "ids",
        "states",
    }
    assert {("run.log", "text"), ("run.log", "file"), ("screen", "text")} <= found
