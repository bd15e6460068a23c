"""A run's folder: every file in it is whole or absent."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedprune.config import RunConfig, to_yaml
from fedprune.errors import ConfigError
from fedprune.models.sidecar import read_sidecar, write_sidecar
from fedprune.reporting.ledger import Ledger
from fedprune.wire.update import Change, LinearUpdate, decode_update, encode_update


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

    def start(self, config: RunConfig) -> None:
        """Make the folder and write the resolved configuration into it.

        Raises
        ------
        ConfigError
            If the folder holds another run or cannot be written.
        """
        if (self.path / "config.yaml").exists():
            raise ConfigError(
                f"`output_dir` must be a new or empty folder, '{self.path}' holds another run. "
                "Choose another name or delete it."
            )
        try:
            (self.path / "blocks").mkdir(parents=True, exist_ok=True)
            self._write_text("config.yaml", to_yaml(config))
        except OSError as error:
            raise ConfigError(
                f"`output_dir` must be writable, '{self.path}' is not: {error.strerror}."
            ) from None

    def save_block(self, prefix: str, block: int, updates: Mapping[str, LinearUpdate]) -> None:
        """Put an aggregated block's masks on disk, and how its survivors are scaled."""
        masks = {name: update.mask for name, update in updates.items()}
        write_sidecar(self._block(block), {block: masks}, prefix)
        if any(update.keeps is not None for update in updates.values()):
            self._write(self._scaled(block), encode_update(updates))

    def read_changes(self, blocks: int) -> dict[int, dict[str, Change]]:
        """Return what becomes of all aggregated blocks: masks, or updates that also scale."""
        changes: dict[int, dict[str, Change]] = {}
        for block in range(blocks):
            masks = read_sidecar(self._block(block))[block]
            changes[block] = dict(masks)
            if self._scaled(block).exists():
                shapes = {name: mask.shape for name, mask in masks.items()}
                changes[block] = dict(decode_update(self._scaled(block).read_bytes(), shapes))
        return changes

    def fail(self, reason: str, ledger: Ledger) -> None:
        """Record why the run stopped; aggregated blocks stay."""
        state = {"status": "failed", "reason": reason, "ledger": ledger.to_dict()}
        self._write_text("failure.json", json.dumps(state, indent=2) + "\n")

    def finish(self, results: Mapping[str, object]) -> None:
        """Write the results; the blocks are in the exported sidecar now and go."""
        self._write_text("results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(self.path / "blocks", ignore_errors=True)

    def _block(self, block: int) -> Path:
        return self.path / "blocks" / f"block-{block:05d}.safetensors"

    def _scaled(self, block: int) -> Path:
        return self.path / "blocks" / f"block-{block:05d}.update"

    def _write_text(self, name: str, text: str) -> None:
        self._write(self.path / name, text.encode())

    def _write(self, target: Path, data: bytes) -> None:
        partial = target.with_name(f"{target.name}.partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
