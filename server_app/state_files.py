"""Where a run stands, on the disk: what another process needs to go on with it.

`run.json` is replaced as a whole and names the other files, so that they always belong together:
what clients hear of the latest block, and the sums of the chunk that is being folded. The ledger
only grows; `run.json` says how much of it counts.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.disk import commit_file, replace_file, sync
from fedprune.errors import ConfigError
from fedprune.results.ledger import Entry, Ledger
from strategies.run_state import RunState, damaged_state

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
    """The files of one run's state.

    Parameters
    ----------
    folder : Path
        Theirs alone.
    ledger : Ledger
        Filled by :meth:`load`, saved with the state.

    Attributes
    ----------
    identity : Mapping[str, str]
        What must not change while the run lasts: "code", "configuration" and "model" -> hash.
    """

    folder: Path
    ledger: Ledger
    identity: Mapping[str, str] = field(init=False, default_factory=dict)
    _update: str | None = field(init=False, default=None)  # names of files that `run.json` names
    _votes: str | None = field(init=False, default=None)
    _entries: int = field(init=False, default=0)  # of the ledger that are on the disk,
    _size: int = field(init=False, default=0)  # and the bytes that they take

    def load(self) -> RunState:
        """Return where the run stands; a new one's state if nothing was saved of it.

        Raises
        ------
        ConfigError
            If what was saved is damaged.
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

        Raises
        ------
        ConfigError
            If it is not.
        """
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise ConfigError(f"`resume`: this run {_OTHERS[key]}")
        self.identity = identity

    def save(self, state: RunState, votes: Mapping[str, NDArray[Any]]) -> None:
        """Put the state on the disk; ``votes`` are the sums of the open chunk."""
        self.folder.mkdir(exist_ok=True)
        update = f"update-{state.round}-{state.chunk}.bin" if state.update is not None else None
        if state.update is not None and update is not None and update != self._update:
            replace_file(self.folder / update, state.update)
        self._update, self._votes = update, self._save_votes(state, votes) if votes else None
        self._append_entries()
        plain = {
            "format": _FORMAT,
            "identity": dict(self.identity),
            "update": self._update,
            "votes": self._votes,
            "ledger": self._size,
            "state": state.to_dict(),
        }
        replace_file(self.folder / _RUN, json.dumps(plain).encode())
        kept = {_RUN, _LEDGER, self._update, self._votes}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def votes(self) -> Mapping[str, NDArray[Any]]:
        """Return the sums that were saved last, each read when it is looked up.

        Raises
        ------
        ConfigError
            If they are damaged.
        """
        try:
            found: Mapping[str, NDArray[Any]] = np.load(
                self.folder / str(self._votes), allow_pickle=False
            )
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise damaged_state(f"{type(error).__name__}: {error}") from error
        return found

    def _read(self, plain: Mapping[str, Any]) -> RunState:
        if plain["format"] != _FORMAT:
            raise ValueError(f"`format` must be {_FORMAT}, got {plain['format']!r}")
        self.identity = plain["identity"]
        self._update, self._votes, self._size = plain["update"], plain["votes"], plain["ledger"]
        update = (self.folder / self._update).read_bytes() if self._update else None
        with (self.folder / _LEDGER).open("rb") as file:
            lines = file.read(self._size)
        if len(lines) != self._size:
            raise ValueError(f"`{_LEDGER}` must have {self._size} bytes, got {len(lines)}")
        self.ledger.entries[:] = [Entry(**json.loads(line)) for line in lines.splitlines()]
        self._entries = len(self.ledger.entries)
        return RunState.from_dict(plain["state"], update)

    def _save_votes(self, state: RunState, votes: Mapping[str, NDArray[Any]]) -> str:
        name, arrays = f"votes-{state.step}-{len(state.folded)}.npz", dict[str, Any](votes)
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as file:  # array by array: no second copy in memory
            np.savez(file, **arrays)
        sync(partial)
        commit_file(partial, self.folder / name)
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
