"""What a node keeps between two messages of a run: hidden states and its own masks, on its disk."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedprune.errors import ReplyRefusedError
from fedprune.wire.bitmask import BitMask
from fedprune.wire.block import decode_block

_STALE_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Scratch:
    """A node's folder for one run.

    Parameters
    ----------
    folder : Path
        Made on first use, readable by its owner only: hidden states derive from private text.
    """

    folder: Path

    def save_hidden(self, block: int, hidden: list[torch.Tensor]) -> None:
        """Keep the inputs of ``block``, one tensor of shape (1, seq_len, d) a sample."""
        target = self._hidden(block)
        self._save(target, hidden)
        for older in self.folder.glob("hidden-*.safetensors"):
            if older != target:
                older.unlink()

    def load_hidden(self, block: int) -> list[torch.Tensor]:
        """Return the inputs of ``block``.

        Raises
        ------
        ReplyRefusedError
            If this node did not prune the blocks before, or its folder was emptied.
        """
        return self._load(self._hidden(block), f"inputs of block {block}")

    def save_samples(self, samples: list[torch.Tensor]) -> None:
        """Keep the calibration samples, so that no later message draws them again."""
        self._save(self._samples, samples)

    def load_samples(self) -> list[torch.Tensor]:
        """Return the calibration samples; ReplyRefusedError as :meth:`load_hidden`."""
        return self._load(self._samples, "calibration samples")

    def save_masks(self, block: int, data: bytes) -> None:
        """Keep a block's encoded masks for the local evaluation."""
        target = self._make() / f"masks-{block:05d}.bin"
        partial = target.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(target)

    def load_masks(self, block: int, shapes: Mapping[str, tuple[int, int]]) -> dict[str, BitMask]:
        """Return a block's masks; ReplyRefusedError if this node did not prune it."""
        try:
            data = (self.folder / f"masks-{block:05d}.bin").read_bytes()
        except OSError:
            raise ReplyRefusedError(f"this node did not prune block {block} in this run.") from None
        return decode_block(data, shapes)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def sweep(folder: Path) -> None:
        """Delete the folders of runs that ended more than a week ago without cleaning up."""
        runs = folder.parent.parent
        for run in runs.glob("run-*"):
            if time.time() - run.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(run, ignore_errors=True)

    def _save(self, target: Path, tensors: list[torch.Tensor]) -> None:
        self._make()
        partial = target.with_suffix(".partial")
        named = {f"{index:06d}": tensor.contiguous() for index, tensor in enumerate(tensors)}
        save_file(named, partial)
        partial.replace(target)

    def _load(self, source: Path, what: str) -> list[torch.Tensor]:
        try:
            tensors = load_file(source)
        except (OSError, SafetensorError):
            raise ReplyRefusedError(
                f"the {what} are not on this node: it missed an earlier message "
                "of this run, or its cache folder was emptied. It can take part in the next run."
            ) from None
        return [tensors[key] for key in sorted(tensors)]

    def _make(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.folder

    def _hidden(self, block: int) -> Path:
        return self.folder / f"hidden-{block:05d}.safetensors"

    @property
    def _samples(self) -> Path:
        return self.folder / "samples.safetensors"
