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
from fedprune.wire.bitmask import BitMask


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
            self._write("config.yaml", to_yaml(config))
        except OSError as error:
            raise ConfigError(
                f"`output_dir` must be writable, '{self.path}' is not: {error.strerror}."
            ) from None

    def save_block(self, prefix: str, block: int, masks: Mapping[str, BitMask]) -> None:
        """Put an aggregated block's masks on disk."""
        write_sidecar(self._block(block), {block: masks}, prefix)

    def read_masks(self, blocks: int) -> dict[int, dict[str, BitMask]]:
        """Return the masks of all aggregated blocks."""
        masks: dict[int, dict[str, BitMask]] = {}
        for block in range(blocks):
            masks.update(read_sidecar(self._block(block)))
        return masks

    def fail(self, reason: str, ledger: Ledger) -> None:
        """Record why the run stopped; aggregated blocks stay."""
        state = {"status": "failed", "reason": reason, "ledger": ledger.to_dict()}
        self._write("failure.json", json.dumps(state, indent=2) + "\n")

    def finish(self, results: Mapping[str, object]) -> None:
        """Write the results; the blocks are in the exported sidecar now and go."""
        self._write("results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(self.path / "blocks", ignore_errors=True)

    def _block(self, block: int) -> Path:
        return self.path / "blocks" / f"block-{block:05d}.safetensors"

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / name)
