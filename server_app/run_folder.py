"""A run's folder: every file in it is whole or absent, also after a kill."""

import functools
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fedprune.config import RunConfig, to_yaml
from fedprune.disk import commit_file, replace_file, sync
from fedprune.errors import ConfigError, WireError
from fedprune.methods.agreement import (
    BlockSample,
    agreement_matrix,
    agreement_with_result,
    extremes,
    pairwise_agreement,
    tied_weights,
    unanimous_share,
)
from fedprune.methods.collection import BlockStatistics
from fedprune.methods.exchange import BlockResult
from fedprune.methods.registry import Solution
from fedprune.methods.statistics_folder import write_block
from fedprune.models.changes import Changes, Recalled
from fedprune.models.loading import LoadedModel
from fedprune.results.build import ClientAgreement, LinearFigures
from fedprune.results.ledger import Entry, Ledger
from fedprune.results.tracking import Tracking
from fedprune.wire.changes import Change, decode_update, encode_update, keeps_survivors, mask_of
from strategies.state import RunState, damaged_state


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes."""

    path: Path  # made by `start`; must not hold results yet

    @property
    def model(self) -> Path:
        """The exported model's folder."""
        return self.path / "model"

    @property
    def statistics(self) -> Path:
        """The folder of collected statistics."""
        return self.path / "statistics"

    @property
    def state(self) -> Path:
        """The folder of what a run that goes on needs beside its blocks."""
        return self.path / "state"

    @property
    def finished(self) -> bool:
        """Whether the results are there."""
        return (self.path / "results.json").exists()

    def start(self, config: RunConfig) -> None:
        """Make the folder and write the resolved configuration into it.

        Raises ConfigError if the folder holds another run or cannot be written.
        """
        if self._config.exists():
            raise ConfigError(
                f"`output_dir` must be a new or empty folder, '{self.path}' holds another run. "
                f"Choose another name or delete it, or go on with it: resume={self.path}"
            )
        try:
            (self.path / "blocks").mkdir(parents=True, exist_ok=True)
            self.state.mkdir(exist_ok=True)
            self._write_text("config.yaml", to_yaml(config))
        except OSError as error:
            raise ConfigError(
                f"`output_dir` must be writable, '{self.path}' is not: {error.strerror}."
            ) from None

    def config_text(self) -> str:
        """Return the configuration that the run was started with, as it was written.

        Raises ConfigError if there is no run in the folder.
        """
        try:
            return self._config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"`resume` must be the folder of a run, there is no configuration in "
                f"'{self.path}'. A run's folder is the `output_dir` that it was started with."
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for as long as the body of the `with` statement lasts.

        The lock is the operating system's and goes with the process, however that ends.

        Raises ConfigError if another process works in the folder.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(
                f"`resume`: another process is at work on the run in '{self.path}'. Wait for it, "
                "or end it first."
            ) from None
        try:
            yield
        finally:
            # Nobody waits for it, so that it can go while it is held; a kill leaves it behind.
            (self.path / ".lock").unlink(missing_ok=True)
            lock.release()

    def reopen(self) -> None:
        """Prepare to go on: the failure of the process before is no news any more."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def fail(self, reason: str, ledger: Ledger) -> None:
        """Record why the run stopped, unless the disk is full; aggregated blocks stay."""
        state = {"status": "failed", "reason": reason, "ledger": ledger.to_dict()}
        with suppress(OSError):
            self._write_text("failure.json", json.dumps(state, indent=2) + "\n")

    def finish(self, results: Mapping[str, object]) -> None:
        """Write the results; the blocks are in the exported sidecar now and go."""
        self._write_text("results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        self.tidy()

    def tidy(self) -> None:
        """Delete what a finished run needs no more."""
        for folder in (self.path / "blocks", self.state):
            shutil.rmtree(folder, ignore_errors=True)

    def drop_partial(self) -> None:
        """Delete files that a process did not come to the end of; nobody may be at work here."""
        for path in self.path.glob("*.partial"):
            path.unlink(missing_ok=True)

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    def _write_text(self, name: str, text: str) -> None:
        replace_file(self.path / name, text.encode())


_FORMAT = 1
_RUN = "run.json"
_LEDGER = "ledger.jsonl"
_OTHERS = {
    "code": "was started by other sources of fedprune. Go on with the release that started it.",
    "configuration": "has a `config.yaml` that was changed since. Put back what it said.",
    "model": "prunes another model than the one that is found now. Put back the one it began with.",
}


@dataclass
class StateFiles:
    """The files of one run's state."""

    folder: Path
    ledger: Ledger  # filled by `load`, saved with the state
    # what must not change while the run lasts: "code", "configuration" and "model" -> hash
    identity: Mapping[str, str] = field(init=False, default_factory=dict)
    _update: str | None = field(init=False, default=None)  # names of files that `run.json` names
    _partial: str | None = field(init=False, default=None)
    _secure: str | None = field(init=False, default=None)
    _entries: int = field(init=False, default=0)  # of the ledger that are on the disk,
    _size: int = field(init=False, default=0)  # and the bytes that they take

    def load(self) -> RunState:
        """Return where the run stands; a new one's state if nothing was saved of it.

        Raises ConfigError if what was saved is damaged.
        """
        try:
            data = (self.folder / _RUN).read_bytes()
        except FileNotFoundError:
            return RunState()
        try:
            return self._read(json.loads(data))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged_state(f"{type(error).__name__}: {error}") from error

    def identify(self, identity: Mapping[str, str]) -> None:
        """Note what is run, or make sure that it is what was run before.

        Raises ConfigError if it is not.
        """
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise ConfigError(f"`resume`: this run {_OTHERS[key]}")
        self.identity = identity

    def save(self, state: RunState, partial: Mapping[str, NDArray[Any]]) -> None:
        """Put the state on the disk; ``partial`` are the sums of the open chunk."""
        self.folder.mkdir(exist_ok=True)
        update = f"update-{state.round}-{state.chunk}.bin" if state.update is not None else None
        if state.update is not None and update is not None and update != self._update:
            replace_file(self.folder / update, state.update)
        secure = f"secure-{state.attempts}.bin" if state.secure is not None else None
        if state.secure is not None and secure is not None and secure != self._secure:
            replace_file(self.folder / secure, state.secure)
        self._secure = secure
        self._update, self._partial = (
            update,
            self._save_partial(state, partial) if partial else None,
        )
        self._append_entries()
        plain = {
            "format": _FORMAT,
            "identity": dict(self.identity),
            "update": self._update,
            "partial": self._partial,
            "secure": self._secure,
            "ledger": self._size,
            "state": state.to_dict(),
        }
        replace_file(self.folder / _RUN, json.dumps(plain).encode())
        kept = {_RUN, _LEDGER, self._update, self._partial, self._secure}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def partial_state(self) -> Mapping[str, NDArray[Any]]:
        """Return the sums that were saved last, each read when it is looked up.

        Raises ConfigError if they are damaged.
        """
        try:
            found: Mapping[str, NDArray[Any]] = np.load(
                self.folder / str(self._partial), allow_pickle=False
            )
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise damaged_state(f"{type(error).__name__}: {error}") from error
        return found

    def _read(self, plain: Mapping[str, Any]) -> RunState:
        if plain["format"] != _FORMAT:
            raise ValueError(f"`format` must be {_FORMAT}, got {plain['format']!r}")
        self.identity = plain["identity"]
        self._update, self._partial, self._size = plain["update"], plain["partial"], plain["ledger"]
        self._secure = plain["secure"]
        update = (self.folder / self._update).read_bytes() if self._update else None
        secure = (self.folder / self._secure).read_bytes() if self._secure else None
        with (self.folder / _LEDGER).open("rb") as file:
            lines = file.read(self._size)
        if len(lines) != self._size:
            raise ValueError(f"`{_LEDGER}` must have {self._size} bytes, got {len(lines)}")
        self.ledger.entries[:] = [Entry(**json.loads(line)) for line in lines.splitlines()]
        self._entries = len(self.ledger.entries)
        return RunState.from_dict(plain["state"], update, secure)

    def _save_partial(self, state: RunState, partial: Mapping[str, NDArray[Any]]) -> str:
        name, arrays = f"partial-{state.step}-{len(state.folded)}.npz", dict[str, Any](partial)
        growing = self.folder / f"{name}.partial"
        with growing.open("wb") as file:  # array by array: no second copy in memory
            np.savez(file, **arrays)
        sync(growing)
        commit_file(growing, self.folder / name)
        return name

    def _append_entries(self) -> None:
        """Write the ledger's new entries behind those that count."""
        fresh = self.ledger.entries[self._entries :]
        lines = "".join(f"{json.dumps(asdict(entry))}\n" for entry in fresh).encode()
        descriptor = os.open(self.folder / _LEDGER, os.O_RDWR | os.O_CREAT, 0o644)
        with open(descriptor, "r+b") as file:
            file.truncate(self._size)  # a killed process may have written more
            file.seek(self._size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._entries, self._size = len(self.ledger.entries), self._size + len(lines)


_MATRIX_CLIENTS = 64  # rows of the matrix of agreement between clients


@dataclass
class Tally:
    """What a strategy's results are kept in, and read back from."""

    folder: RunFolder  # where masks, values and figures go
    files: StateFiles
    loaded: LoadedModel
    rounds: int  # `strategy.rounds`: the results are those of the last one
    # whether votes of at most half decide nothing (`strategy.majority_floor`)
    majority_floor: bool = field(default=False, kw_only=True)
    # is told of every block, in every round
    tracking: Tracking | None = field(default=None, kw_only=True)

    def add(self, number: int, result: BlockResult, refined: bool = False) -> None:
        """Save a block of a round and its figures, and tell of them.

        `refined`: only its survivors are new; its figures are of its masks, and stay.
        """
        folder, block, changes = self._round(number), result.block, result.changes
        if not folder.exists():
            folder.mkdir()
            sync(folder.parent)
        figures = self._figures(number, block) if refined else self._told(result)
        if all(map(keeps_survivors, changes.values())):  # clients hear no more than the masks
            changes = {name: mask_of(change) for name, change in changes.items()}
        if changes:
            replace_file(self._file(number, block), encode_update(changes))
        changed = [(name, *change.shape) for name, change in changes.items()]
        told = json.dumps({**figures, "changed": changed})
        replace_file(self._file(number, block, "json"), told.encode())
        if self.tracking is not None and not refined:
            step = (number - 1) * len(self._blocks) + block + 1
            linears = [LinearFigures(**linear) for linear in figures["linears"]]
            self.tracking.block(step, linears, self.files.ledger)

    def keep(self, statistics: BlockStatistics) -> None:
        """Save what was found out of a block of the dense model, and that it stays dense."""
        block, clients = statistics.block, statistics.clients
        write_block(self.folder.statistics, block, statistics.arrays)
        self.add(self.rounds, BlockResult(block, {}, clients, clients))

    def solve(self, solution: Solution, clients: int) -> None:
        """Save what becomes of every block by statistics of so many clients."""
        for block in self._blocks:
            changes = dict(solution.changes.get(block, {}))
            self.add(self.rounds, BlockResult(block, changes, clients, clients))

    def recall(self, number: int, block: int) -> Mapping[str, Change]:
        """Return what was saved of a block in a round; empty if no client reported it.

        Raises ConfigError if it is damaged or not there any more.
        """
        try:
            changed = self._figures(number, block)["changed"]
            shapes = {name: (d_out, d_in) for name, d_out, d_in in changed}
            return decode_update(self._file(number, block).read_bytes(), shapes) if shapes else {}
        except (OSError, ValueError, KeyError, TypeError, WireError) as error:
            raise damaged_state(f"block {block} of round {number}: {error}") from error

    def save(self, state: RunState, partial: Mapping[str, NDArray[Any]]) -> None:
        """Save where the run stands; the blocks that it counts on are on the disk before."""
        self.files.save(state, partial)
        for number in range(1, state.round - 1):
            shutil.rmtree(self._round(number), ignore_errors=True)

    def partial_state(self) -> Mapping[str, NDArray[Any]]:
        """Return the sums that were saved last."""
        return self.files.partial_state()

    def changes(self) -> Changes:
        """Return what becomes of the aggregated blocks, read from disk when it is asked for."""
        return Recalled(self._blocks, functools.partial(self.recall, self.rounds))

    def linears(self) -> list[LinearFigures]:
        """Return the figures of all linears, in the model's order."""
        found = (self._figures(self.rounds, block) for block in self._blocks)
        return [LinearFigures(**linear) for figures in found for linear in figures["linears"]]

    def agreement(self, clients: Sequence[str]) -> ClientAgreement | None:
        """Return how far each of these clients agrees with the result and with the others.

        None where clients send no masks.
        """
        found = (self._figures(self.rounds, block)["sample"] for block in self._blocks)
        samples = [_sample(plain) for plain in found if plain is not None]
        if not samples:
            return None
        shares = agreement_with_result(samples)
        result = {name: shares[name] for name in clients if name in shares}
        shown = extremes(result, _MATRIX_CLIENTS)
        weights = sum(sample.weights for sample in samples)
        return ClientAgreement(weights, result, shown, agreement_matrix(samples, shown))

    @property
    def _blocks(self) -> range:
        return range(len(self.loaded.layout.blocks))

    def _round(self, number: int) -> Path:
        return self.folder.path / "blocks" / f"round-{number:02d}"

    def _file(self, number: int, block: int, ending: str = "safetensors") -> Path:
        return self._round(number) / f"block-{block:05d}.{ending}"

    def _figures(self, number: int, block: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file(number, block, "json").read_bytes())
        return found

    def _told(self, result: BlockResult) -> dict[str, Any]:
        """Return the figures of a block."""
        shapes = self.loaded.layout.shapes()[result.block].items()
        linears = [asdict(self._linear(result, name, shape)) for name, shape in shapes]
        return {"linears": linears, "sample": result.sample and _plain(result.sample)}

    def _linear(self, result: BlockResult, name: str, shape: tuple[int, int]) -> LinearFigures:
        mask, votes = result.masks.get(name), result.histograms.get(name)
        weights = shape[0] * shape[1]
        zeros = weights - mask.survivors if mask is not None else 0
        linear = self.loaded.layout.linears(result.block)[name]
        place, expert = f"{self.loaded.layout.prefix}.{result.block}", linear.expert
        voters, effective = result.heard.get(name, (result.voters, result.effective_voters))
        return LinearFigures(
            name=f"{place}.{name}",
            weights=weights,
            zeros=zeros,
            voters=voters,
            votes=[int(count) for count in votes] if votes is not None else [],
            agreement=None if votes is None else pairwise_agreement(votes, effective),
            unanimous=None if votes is None else unanimous_share(votes),
            tied=(0, 0) if votes is None else tied_weights(votes, zeros, self.majority_floor),
            expert=f"{place}.{expert.holder}.{expert.index}" if expert else "",
            tokens=result.tokens.get(name) if expert else None,
        )


def _plain(sample: BlockSample) -> dict[str, object]:
    clients = {name: bits.tobytes().hex() for name, bits in sample.clients.items()}
    return {
        "weights": sample.weights,
        "result": sample.result.tobytes().hex(),
        "clients": clients,
    }


def _sample(plain: Mapping[str, Any]) -> BlockSample:
    clients = {name: _bits(text) for name, text in plain["clients"].items()}
    return BlockSample(plain["weights"], _bits(plain["result"]), clients)


def _bits(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
