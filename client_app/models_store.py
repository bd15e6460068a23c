"""The models that servers sent to this machine, each whole or on its way.

A model lies in a folder named by the hash of its manifest. On its way it is a hidden folder beside
it, whose files grow parcel by parcel, so their sizes say where the transfer goes on. Nodes that
share a machine may share the folder: one at a time looks and writes, under a lock.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedprune.disk import commit_file, is_refusal, replace_file, sync
from fedprune.errors import ModelError, ReplyRefusedError, WireError
from fedprune.home import home
from fedprune.models.transfer import Manifest, ModelFile, is_digest

_MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_GROWING = ".part"
_DAY = 24 * 3600
_UNUSED_SECONDS = 30 * _DAY
_ABANDONED_SECONDS = 7 * _DAY
# A run needs room beside the model, too.
_SPARE_BYTES = 200_000_000
_GIGABYTE = 1e9


@dataclass(frozen=True)
class ModelStore:
    """The folder of the models that came from servers.

    Parameters
    ----------
    most_bytes : int
        What they may take together; 0 takes none.
    """

    most_bytes: int

    @property
    def root(self) -> Path:
        """Where they all lie."""
        return home() / "models"

    def find(self, digest: str) -> Path | None:
        """Return the folder of a model that is whole, and note that it is in use."""
        folder = self._folder(digest)
        if not self._is_whole(folder):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder

    def begin(self, manifest: Manifest) -> int:
        """Make room for a model and return how many of its parcels are there already.

        Raises
        ------
        ModelError
            If its operator, or the disk, has no room for it.
        """
        with self._locked(), _readable(manifest):
            folder = self._folder(manifest.digest)
            if self._is_whole(folder):
                return len(manifest.parcels)
            shutil.rmtree(folder, ignore_errors=True)
            partial = self._partial(manifest.digest)
            self._make_room(manifest, partial)
            partial.mkdir(exist_ok=True)
            replace_file(partial / _MANIFEST, manifest.text)
            return self._settle(manifest)

    def add(self, digest: str, number: int, data: bytes) -> int:
        """Write a parcel, if it is the next, and return how many are there now.

        Raises
        ------
        ReplyRefusedError
            If the manifest did not come before, or the parcel is not what it says.
        ModelError
            If the disk is full, or did not keep what was written.
        """
        with self._locked():
            manifest = self._manifest(digest)
            if self._is_whole(self._folder(digest)):
                return len(manifest.parcels)
            with _readable(manifest):
                held = self._settle(manifest)
                if number == held:
                    self._append(manifest, number, data)
                    held = self._settle(manifest)
                return held

    def sweep(self, keep: str) -> None:
        """Delete what nobody has used for long; not ``keep``, and not what was used last."""
        now = time.time()
        with contextlib.suppress(OSError), self._locked():
            for folder in [*self._by_use("*")[:-1], *self._by_use(f".*{_PARTIAL}")]:
                most = _UNUSED_SECONDS if is_digest(folder.name) else _ABANDONED_SECONDS
                if _digest(folder) != keep and now - _touched(folder) > most:
                    shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, manifest: Manifest, partial: Path) -> None:
        if manifest.size > self.most_bytes:
            raise ModelError(
                f"`max-model-gb` in the node's --node-config is {self.most_bytes / _GIGABYTE:g}, "
                f"the server's model has {manifest.size / _GIGABYTE:.3g} GB. Raise it, or give the "
                "node its own copy: `model-path`."
            )
        others = [folder for folder in self._by_use("*", f".*{_PARTIAL}") if folder != partial]
        taken = {folder: _bytes_in(folder) for folder in others}
        while others and sum(taken.values()) + manifest.size > self.most_bytes:
            oldest = others.pop(0)
            if time.time() - _touched(oldest) < _DAY:
                raise ModelError(
                    f"`max-model-gb` in the node's --node-config is "
                    f"{self.most_bytes / _GIGABYTE:g}, and models of the last day take "
                    f"{sum(taken.values()) / _GIGABYTE:.3g} GB of it beside the "
                    f"{manifest.size / _GIGABYTE:.3g} GB of this one. Raise it, or wait."
                )
            shutil.rmtree(oldest, ignore_errors=True)
            del taken[oldest]
        needed = manifest.size - _bytes_in(partial) + _SPARE_BYTES
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise ModelError(
                f"The node's disk has {free / _GIGABYTE:.3g} GB free, the server's model needs "
                f"{needed / _GIGABYTE:.3g} GB more. Free disk space, point FEDPRUNE_HOME to a "
                "larger disk, or give the node its own copy: `model-path`."
            )

    def _append(self, manifest: Manifest, number: int, data: bytes) -> None:
        parcel = manifest.parcels[number]
        try:
            parcel.check(data)
        except WireError as error:
            raise ReplyRefusedError(str(error)) from None
        path = self._partial(manifest.digest) / f"{parcel.file.name}{_GROWING}"
        with path.open("ab") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(parcel.start)
                raise

    def _settle(self, manifest: Manifest) -> int:
        """Close what is complete, cut off what is half, and return how many parcels are there."""
        partial, held = self._partial(manifest.digest), 0
        for file in manifest.files:
            if (partial / file.name).exists():
                held += len(file.parcels)
                continue
            growing = partial / f"{file.name}{_GROWING}"
            size = growing.stat().st_size if growing.exists() else 0
            if size == file.size:
                _close(growing, file)
                held += len(file.parcels)
                continue
            whole = min(size, file.size) // manifest.parcel_bytes
            if size != whole * manifest.parcel_bytes:
                os.truncate(growing, whole * manifest.parcel_bytes)
            return held + whole
        sync(partial)
        commit_file(partial, self._folder(manifest.digest))
        return held

    def _manifest(self, digest: str) -> Manifest:
        for folder in (self._folder(digest), self._partial(digest)):
            with contextlib.suppress(OSError, WireError):
                return Manifest.read((folder / _MANIFEST).read_bytes())
        raise ReplyRefusedError(
            "this node has no manifest of this model any more: the models in its FEDPRUNE_HOME "
            "were deleted on the way. It can take part in the next run."
        )

    def _is_whole(self, folder: Path) -> bool:
        """Whether a folder has every file of its manifest, by size; handshakes tell the rest."""
        try:
            manifest = Manifest.read((folder / _MANIFEST).read_bytes())
            return all((folder / f.name).stat().st_size == f.size for f in manifest.files)
        except (OSError, WireError):
            return False

    def _by_use(self, *names: str) -> list[Path]:
        """Return models' folders by patterns, the one that was used longest ago first."""
        found = [path for name in names for path in self.root.glob(name)]
        return sorted((path for path in found if is_digest(_digest(path))), key=_touched)

    def _folder(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ReplyRefusedError("a model is named by a SHA-256, 64 hexadecimal digits.")
        return self.root / digest

    def _partial(self, digest: str) -> Path:
        return self.root / f".{digest}{_PARTIAL}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _close(growing: Path, file: ModelFile) -> None:
    """Give a file that has grown to its size its name, if it is what it should be."""
    with growing.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        growing.unlink()
        raise ModelError(
            f"'{file.name}' of the server's model came in right parcels and is another file on "
            f"this node's disk: SHA-256 {found[:16]}, {file.sha256[:16]} expected. Check the disk; "
            "the next run sends the file again."
        )
    commit_file(growing, growing.with_name(file.name))


@contextmanager
def _readable(manifest: Manifest) -> Iterator[None]:
    """Say in words that a disk is full or cannot be written."""
    try:
        yield
    except OSError as error:
        if not is_refusal(error):
            raise
        raise ModelError(
            f"The server's model of {manifest.size / _GIGABYTE:.3g} GB cannot be written on this "
            f"node: {error.strerror}. Free disk space; the next run goes on where this one stopped."
        ) from error


def _bytes_in(folder: Path) -> int:
    found = 0
    with contextlib.suppress(OSError):
        found = sum(path.stat().st_size for path in folder.iterdir())
    return found


def _digest(folder: Path) -> str:
    return folder.name.removeprefix(".").removesuffix(_PARTIAL)


def _touched(folder: Path) -> float:
    """Return when a folder or a file in it was changed last."""
    return max(path.stat().st_mtime for path in (folder, *folder.glob(f"*{_GROWING}")))
