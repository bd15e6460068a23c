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
from fedprune.wire.change import Change, keeps_survivors, mask_of
from fedprune.wire.update import decode_update, encode_update


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

    def save_block(self, prefix: str, block: int, changes: Mapping[str, Change]) -> None:
        """Put what becomes of a block on disk; a later round's takes the place of an earlier one's.

        Masks alone are a sidecar; where survivors change as well, a second file says how.
        """
        masks = {name: mask_of(change) for name, change in changes.items()}
        more = self._more(block)
        more.unlink(missing_ok=True)
        write_sidecar(self._block(block), {block: masks}, prefix)
        if not all(map(keeps_survivors, changes.values())):
            self._write(more, encode_update(changes))

    def read_block(self, block: int) -> dict[str, Change]:
        """Return what becomes of a block: masks, or changes of survivors as well.

        Empty if nothing was saved of it, since no client reported it: it stays dense.
        """
        if not self._block(block).exists():
            return {}
        masks = read_sidecar(self._block(block))[block]
        if not self._more(block).exists():
            return dict(masks)
        shapes = {name: mask.shape for name, mask in masks.items()}
        return decode_update(self._more(block).read_bytes(), shapes)

    def read_changes(self, blocks: int) -> dict[int, dict[str, Change]]:
        """Return what becomes of all aggregated blocks."""
        return {block: self.read_block(block) for block in range(blocks)}

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

    def _more(self, block: int) -> Path:
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
