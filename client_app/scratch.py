"""What a node keeps between two messages of a run: hidden states and its own masks, on its disk."""

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from filelock import FileLock, Timeout

from client_app.unused import DAY_SECONDS, long_unused
from fedprune.disk import read_if_there, replace_file, write_at
from fedprune.errors import ModelError, ReplyRefusedError
from fedprune.models.weights import index_files, save_tensors
from fedprune.records import FINAL
from fedprune.wire.changes import Change, decode_update, encode_update, most_update_bytes

_STALE_SECONDS = 7 * DAY_SECONDS
_PRIVATE = 0o600
_OUTBOX = "outbox.bin"
_MODEL = "model.sha256"
_INBOX = re.compile(r"update|start-\d{5}|public-\d{5}|shares|final")
SENT = "sent"
"""A file that says that something was sent under masks; it stays when all else goes."""

_log = logging.getLogger("flwr")


@dataclass(frozen=True)
class Scratch:
    """A node's folder for one job, however many processes and runs of Flower's that takes.

    Files are whole or absent, and nothing that an order read goes before the next order shows that
    the server has the answer: the same order can be followed again.
    """

    # made on first use, readable by its owner only: hidden states derive from private text
    folder: Path

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other process works here, and keep others out.

        A process can outlive its SuperNode, whose successor is asked for the same again. The lock
        is the operating system's and goes with the process, however that ends.
        """
        lock = FileLock(self._make() / ".lock", mode=_PRIVATE)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.warning("an earlier process of this node is still at work; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def save_hidden(self, block: int, hidden: Sequence[torch.Tensor], dense: bool = False) -> None:
        """Keep the inputs of ``block``, one tensor of shape (1, seq_len, d) a sample.

        Those behind the blocks as they became, or those in the ``dense`` model.
        """
        self._save(self._hidden(block, dense), hidden)

    def go_on_from(self, block: int) -> None:
        """Forget the inputs of all blocks but one, that from which the server goes on."""
        for found in (*self.folder.glob("hidden-*"), *self.folder.glob("dense-*")):
            if found not in (self._hidden(block), self._hidden(block, dense=True)):
                found.unlink()

    def load_hidden(self, block: int, dense: bool = False) -> list[torch.Tensor]:
        """Return the inputs of ``block``, as :meth:`save_hidden` kept them.

        Raises ReplyRefusedError if this node did not prune the blocks before, or its folder was
        emptied.
        """
        return self._load(self._hidden(block, dense), f"inputs of block {block}")

    @property
    def has_samples(self) -> bool:
        """Whether this node's samples of this run are kept."""
        return self._samples.exists()

    def save_samples(self, samples: Sequence[torch.Tensor]) -> None:
        """Keep the calibration samples, so that no later message draws them again."""
        self._save(self._samples, samples)

    def load_samples(self) -> list[torch.Tensor]:
        """Return the calibration samples; ReplyRefusedError as :meth:`load_hidden`."""
        return self._load(self._samples, "calibration samples")

    def save_changes(self, block: int, changes: Mapping[str, Change]) -> None:
        """Keep what this node made of a block on its own, for the local evaluation."""
        self._write(f"changes-{block:05d}.bin", encode_update(changes))

    def load_changes(self, block: int, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Change]:
        """Return a block's changes; ReplyRefusedError if this node did not prune it."""
        data = read_if_there(self.folder / f"changes-{block:05d}.bin")
        if data is None:
            raise ReplyRefusedError(f"this node did not prune block {block} in this run.")
        return decode_update(data, shapes)

    def save_answer(self, exchange: str, block: int, payload: bytes) -> None:
        """Keep what this node says of a block, where it must not say anything else later."""
        self._write(f"answer-{exchange}-{block:05d}.bin", payload)

    def load_answer(self, exchange: str, block: int) -> bytes | None:
        """Return what this node has said of a block, None if nothing."""
        return read_if_there(self.folder / f"answer-{exchange}-{block:05d}.bin")

    def save_model(self, digest: str) -> None:
        """Keep which of the models that came from servers this job is about."""
        self._write(_MODEL, digest.encode())

    def model(self) -> str | None:
        """Return the hash of that model's manifest, None if the job is about another one."""
        found = read_if_there(self.folder / _MODEL)
        return None if found is None else found.decode("ascii")

    def save_outbox(self, data: bytes) -> None:
        """Keep a reply that is fetched in segments."""
        self._write(_OUTBOX, data)

    def segment(self, number: int, size: int) -> bytes:
        """Return a segment of the reply that was kept last.

        Raises ReplyRefusedError if there is no such segment.
        """
        path = self.folder / _OUTBOX
        total = path.stat().st_size if path.exists() else 0
        if not 0 < number * size < total:
            raise ReplyRefusedError(f"this node keeps no segment {number} for this run.")
        with path.open("rb") as file:
            file.seek(number * size)
            return file.read(size)

    def receive(self, name: str, start: int, data: bytes) -> None:
        """Keep a segment of what the next order will need, in its place: it may come twice.

        Raises ReplyRefusedError if the name is none that an order needs, or if the segments before
        it are not here.
        """
        path = self.inbox(name)
        with self.exclusive():
            found = path.stat().st_size if path.exists() else 0
            if not 0 <= start <= found:
                raise ReplyRefusedError(
                    f"a segment that starts at byte {start} follows {found} bytes of '{name}': "
                    "this node's cache folder was emptied. It can take part in the next run."
                )
            self._make()
            path.touch(mode=_PRIVATE)
            write_at(path, start, data)

    def read_inbox(self, names: Mapping[str, int]) -> dict[str, bytes]:
        """Return what came in segments for this order, and forget what came for others.

        `names`: name -> its bytes, as the order says. Raises ReplyRefusedError if something of it
        is not here.
        """
        expected = {self.inbox(name): size for name, size in names.items()}
        for path in self.folder.glob("inbox-*.bin"):
            if path not in expected:
                path.unlink()
        for path, size in expected.items():
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise ReplyRefusedError(
                    f"of what was delivered ahead of this order, {size} bytes, {found} are on this "
                    "node: its cache folder was emptied. It can take part in the next run."
                )
        return {name: self.inbox(name).read_bytes() for name in names}

    def inbox(self, name: str) -> Path:
        """Return the file that gathers the segments of a name, which becomes part of the file's.

        Raises ReplyRefusedError if the name is none that an order needs.
        """
        if not _INBOX.fullmatch(name):
            raise ReplyRefusedError(
                "a segment is of 'update', 'start-NNNNN', 'public-NNNNN', 'shares' or 'final'."
            )
        return self.folder / f"inbox-{name}.bin"

    @property
    def secure(self) -> Path:
        """The folder of what secure sums need kept: secrets, and what was said."""
        return self.folder / "secure"

    def remove(self) -> None:
        """Delete the folder; what was sent under masks must not be sent under others.

        Whoever could make a node forget that could ask twice, about other clients.
        """
        sent = (self.secure / SENT).exists()
        shutil.rmtree(self.folder, ignore_errors=True)
        if sent:
            self._make()
            self.secure.mkdir(mode=0o700, exist_ok=True)
            (self.secure / SENT).touch(mode=_PRIVATE)

    def forget(self) -> None:
        """Delete the folder, and the job's where no other node of this machine has one in it."""
        self.remove()
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def sweep(self) -> None:
        """Delete the folders of other jobs that nobody has worked on for a week."""
        self._touch()
        now, old = time.time(), []
        for job in self.folder.parent.parent.glob("job-*"):
            with contextlib.suppress(OSError):
                if job != self.folder.parent and now - job.stat().st_mtime > _STALE_SECONDS:
                    old.append(job)
        for job in long_unused(self.folder.parent.parent, old):
            shutil.rmtree(job, ignore_errors=True)

    def _save(self, target: Path, tensors: Sequence[torch.Tensor]) -> None:
        self._make()
        named = {f"{index:06d}": tensor for index, tensor in enumerate(tensors)}
        save_tensors(target, named, mode=_PRIVATE)

    def _load(self, source: Path, what: str) -> list[torch.Tensor]:
        try:
            places = index_files([source])
        except ModelError:
            raise ReplyRefusedError(
                f"the {what} are not on this node: it missed an earlier message "
                "of this run, or its cache folder was emptied. It can take part in the next run."
            ) from None
        return [places[name].map() for name in sorted(places)]

    def _write(self, name: str, data: bytes) -> None:
        replace_file(self._make() / name, data, mode=_PRIVATE)

    def _make(self) -> Path:
        for folder in (*reversed(self.folder.parents[:2]), self.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._touch()
        return self.folder

    def _touch(self) -> None:
        """Note on the job's folder that somebody works on it."""
        with contextlib.suppress(OSError):
            os.utime(self.folder.parent)

    def _hidden(self, block: int, dense: bool = False) -> Path:
        return self.folder / f"{'dense' if dense else 'hidden'}-{block:05d}.safetensors"

    @property
    def _samples(self) -> Path:
        return self.folder / "samples.safetensors"


_JOBS = 4  # whose deliveries may lie here at once: of runs under way, or that were killed


@dataclass(frozen=True)
class InboxQuota:
    """The most that can come of one model."""

    # block, model: bytes of what became of its largest block, and of all blocks
    block: int
    model: int

    @classmethod
    def of(cls, shapes: Sequence[Mapping[str, tuple[int, int]]]) -> Self:
        """Return the room for a model; for each of its blocks, linear -> (d_out, d_in)."""
        sizes = [most_update_bytes(block) for block in shapes]
        return cls(max(sizes), sum(sizes))

    def check(self, scratch: Scratch, name: str, stop: int) -> None:
        """Refuse a segment if its ``stop`` bytes, or all of a job or of all jobs, are too many."""
        path = scratch.inbox(name)
        job = stop + sum(map(_size, set(path.parent.glob("inbox-*.bin")) - {path}))
        jobs = path.parents[2].glob(f"*/{path.parent.name}/inbox-*.bin")
        everything = job + sum(_size(found) for found in jobs if found.parent != path.parent)
        most = self.model if name == FINAL else self.block
        for what, found, limit in (
            (f"of '{name}'", stop, most),
            ("of one job", job, self.model + self.block),
            ("of all jobs", everything, _JOBS * (self.model + self.block)),
        ):
            if found > limit:
                raise ReplyRefusedError(
                    f"deliveries {what} may take {limit} bytes on this node, which is what its "
                    f"model explains; with this one they would take {found}. What killed runs left "
                    "is deleted after a week, or by hand from FEDPRUNE_HOME/nodes."
                )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process has just deleted it
        return 0
