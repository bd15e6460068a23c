"""A run's folder: every file in it is whole or absent, also after a kill."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig, to_yaml
from fedprune.disk import replace_file, sync
from fedprune.errors import ConfigError
from fedprune.models.sidecar import read_sidecar, write_sidecar
from fedprune.results.ledger import Ledger
from fedprune.wire.changes import Change, decode_update, encode_update, keeps_survivors, mask_of


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Parameters
    ----------
    path : Path
        Made by :meth:`start`; must not hold results yet.
    """

    path: Path

    @property
    def model(self) -> Path:
        """The exported model's folder."""
        return self.path / "model"

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

        Raises
        ------
        ConfigError
            If the folder holds another run or cannot be written.
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

        Raises
        ------
        ConfigError
            If there is no run in the folder.
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

        Raises
        ------
        ConfigError
            If another process works in the folder.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ConfigError(
                f"`resume`: another process is at work on the run in '{self.path}'. Wait for it, "
                "or end it first."
            ) from None
        finally:
            os.close(descriptor)

    def reopen(self) -> None:
        """Prepare to go on: the failure of the process before is no news any more."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def save_block(
        self, number: int, prefix: str, block: int, changes: Mapping[str, Change]
    ) -> None:
        """Put on disk what becomes of a block in a round; nothing if it stays dense.

        Masks alone are a sidecar; where survivors change as well, a second file says how.
        """
        sidecar, more = self._block(number, block), self._more(number, block)
        sidecar.parent.mkdir(exist_ok=True)
        more.unlink(missing_ok=True)
        sidecar.unlink(missing_ok=True)
        if not changes:
            return
        masks = {name: mask_of(change) for name, change in changes.items()}
        write_sidecar(sidecar, {block: masks}, prefix)
        if not all(map(keeps_survivors, changes.values())):
            replace_file(more, encode_update(changes))

    def read_block(self, number: int, block: int) -> dict[str, Change]:
        """Return what becomes of a block in a round: masks, or changes of survivors as well.

        Empty if nothing was saved of it, since no client reported it: it stays dense.
        """
        sidecar, more = self._block(number, block), self._more(number, block)
        if not sidecar.exists():
            return {}
        masks = read_sidecar(sidecar)[block]
        if not more.exists():
            return dict(masks)
        shapes = {name: mask.shape for name, mask in masks.items()}
        return decode_update(more.read_bytes(), shapes)

    def kept(self, number: int, block: int) -> list[str]:
        """Return the names of the files that say what became of a block in a round."""
        files = self._block(number, block), self._more(number, block)
        return [path.name for path in files if path.exists()]

    def save_figures(self, number: int, block: int, figures: Mapping[str, object]) -> None:
        """Put on disk what the results will tell of a block; plain JSON values."""
        replace_file(self._figures(number, block), json.dumps(figures).encode())

    def read_figures(self, number: int, block: int) -> dict[str, Any]:
        """Return what :meth:`save_figures` put there."""
        found: dict[str, Any] = json.loads(self._figures(number, block).read_bytes())
        return found

    def settle_blocks(self, number: int) -> None:
        """Make sure that a round's blocks survive a power cut."""
        folder = self._round(number)
        if folder.exists():
            sync(folder)
            sync(folder.parent)

    def forget_rounds(self, before: int) -> None:
        """Delete the blocks of the rounds before one."""
        for number in range(1, before):
            shutil.rmtree(self._round(number), ignore_errors=True)

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

    def _round(self, number: int) -> Path:
        return self.path / "blocks" / f"round-{number:02d}"

    def _block(self, number: int, block: int) -> Path:
        return self._round(number) / f"block-{block:05d}.safetensors"

    def _more(self, number: int, block: int) -> Path:
        return self._round(number) / f"block-{block:05d}.update"

    def _figures(self, number: int, block: int) -> Path:
        return self._round(number) / f"block-{block:05d}.json"

    def _write_text(self, name: str, text: str) -> None:
        replace_file(self.path / name, text.encode())
