"""Where a node has its model from: its operator's copy, the job's path, or the server."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from client_app.node import NodeContext
from client_app.scratch import Scratch
from client_app.unused import DAY_SECONDS, long_unused
from fedprune.config import ModelConfig, PrunerConfig, RunConfig
from fedprune.disk import commit_file, file_sha256, home, is_refusal, replace_file, sync
from fedprune.errors import ModelError, ReplyRefusedError, WireError
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model, model_shapes
from fedprune.models.selection import select
from fedprune.models.transfer import Manifest, ModelFile, is_digest
from fedprune.records import ModelSegment

PARTIAL = ".partial"
GROWING = ".part"
# A run needs room beside the model, too.
_SPARE_BYTES = 200_000_000
_GIGABYTE = 1e9


def make_room(root: Path, manifest: Manifest, partial: Path, most_bytes: int) -> None:
    """Delete models that make room for another one, which grows in ``partial``.

    Raises ModelError if there is no room, by the operator's limit or on the disk.
    """
    if manifest.size > most_bytes:
        raise ModelError(
            f"`max-model-gb` in the node's --node-config is {most_bytes / _GIGABYTE:g}, "
            f"the server's model has {manifest.size / _GIGABYTE:.3g} GB. Raise it, or give the "
            "node its own copy: `model-path`."
        )
    others = [folder for folder in by_use(root, "*", f".*{PARTIAL}") if folder != partial]
    taken = {folder: _bytes_in(folder) for folder in others}
    while others and sum(taken.values()) + manifest.size > most_bytes:
        oldest = others.pop(0)
        if time.time() - touched(oldest) < DAY_SECONDS:
            raise ModelError(
                f"`max-model-gb` in the node's --node-config is "
                f"{most_bytes / _GIGABYTE:g}, and models of the last day take "
                f"{sum(taken.values()) / _GIGABYTE:.3g} GB of it beside the "
                f"{manifest.size / _GIGABYTE:.3g} GB of this one. Raise it, or wait."
            )
        shutil.rmtree(oldest, ignore_errors=True)
        del taken[oldest]
    needed = manifest.size - _bytes_in(partial) + _SPARE_BYTES
    free = shutil.disk_usage(root).free
    if needed > free:
        raise ModelError(
            f"The node's disk has {free / _GIGABYTE:.3g} GB free, the server's model needs "
            f"{needed / _GIGABYTE:.3g} GB more. Free disk space, point FEDPRUNE_HOME to a "
            "larger disk, or give the node its own copy: `model-path`."
        )


def by_use(root: Path, *names: str) -> list[Path]:
    """Return models' folders by patterns, the one that was used longest ago first."""
    found = [path for name in names for path in root.glob(name)]
    return sorted((path for path in found if is_digest(digest_of(path))), key=touched)


def _bytes_in(folder: Path) -> int:
    found = 0
    with contextlib.suppress(OSError):
        found = sum(path.stat().st_size for path in folder.iterdir())
    return found


def digest_of(folder: Path) -> str:
    """Return the hash that names a model's folder, whole or on its way."""
    return folder.name.removeprefix(".").removesuffix(PARTIAL)


def touched(folder: Path) -> float:
    """Return when a folder or a file in it was changed last."""
    return max(path.stat().st_mtime for path in (folder, *folder.glob(f"*{GROWING}")))


_MANIFEST = "manifest.json"
_UNUSED_SECONDS = 30 * DAY_SECONDS
_ABANDONED_SECONDS = 7 * DAY_SECONDS
_log = logging.getLogger("flwr")


@dataclass(frozen=True)
class ModelStore:
    """The folder of the models that came from servers."""

    most_bytes: int  # what they may take together; 0 takes none

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

    def heal(self, digest: str) -> None:
        """Throw a model away whose files are not those of its manifest any more.

        Each file is read once in a process, unless it is replaced.
        """
        folder = self._folder(digest)
        if not self._is_whole(folder) or _is_sound(folder):
            return
        with contextlib.suppress(OSError), self._locked():
            if _is_sound(folder):  # another node of this machine got it anew meanwhile
                return
            _log.warning("'%s' has changed on the disk: the server sends it again", folder)
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise ModelError(
                f"The server's model in '{folder}' has changed on this node's disk and cannot be "
                "deleted. Delete this folder; the next run sends the model again."
            )

    def begin(self, manifest: Manifest) -> int:
        """Make room for a model and return how many of its segments are there already.

        Raises ModelError if its operator, or the disk, has no room for it.
        """
        with self._locked(), _readable(manifest):
            folder = self._folder(manifest.digest)
            if self._is_whole(folder):
                return len(manifest.segments)
            shutil.rmtree(folder, ignore_errors=True)
            partial = self._partial(manifest.digest)
            make_room(self.root, manifest, partial, self.most_bytes)
            partial.mkdir(exist_ok=True)
            replace_file(partial / _MANIFEST, manifest.text)
            return self._settle(manifest)

    def add(self, digest: str, number: int, data: bytes) -> int:
        """Write a segment, if it is the next, and return how many are there now.

        Raises ReplyRefusedError if the manifest did not come before, or the segment is not what it
        says. Raises ModelError if the disk is full, or did not keep what was written.
        """
        with self._locked():
            manifest = self._manifest(digest)
            if self._is_whole(self._folder(digest)):
                return len(manifest.segments)
            with _readable(manifest):
                held = self._settle(manifest)
                if number == held:
                    self._append(manifest, number, data)
                    held = self._settle(manifest)
                return held

    def sweep(self, keep: str) -> None:
        """Delete what nobody has used for long; not ``keep``, and not what was used last."""
        now, old = time.time(), []
        with contextlib.suppress(OSError), self._locked():
            for folder in [*by_use(self.root, "*")[:-1], *by_use(self.root, f".*{PARTIAL}")]:
                most = _UNUSED_SECONDS if is_digest(folder.name) else _ABANDONED_SECONDS
                if digest_of(folder) != keep and now - touched(folder) > most:
                    old.append(folder)
            for folder in long_unused(self.root, old):
                shutil.rmtree(folder, ignore_errors=True)

    def _append(self, manifest: Manifest, number: int, data: bytes) -> None:
        segment = manifest.segments[number]
        try:
            segment.check(data)
        except WireError as error:
            raise ReplyRefusedError(str(error)) from None
        path = self._partial(manifest.digest) / f"{segment.file.name}{GROWING}"
        with path.open("ab") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(segment.start)
                raise

    def _settle(self, manifest: Manifest) -> int:
        """Close what is complete, cut off what is half, and return how many segments are there."""
        partial, held = self._partial(manifest.digest), 0
        for file in manifest.files:
            if (partial / file.name).exists():
                held += len(file.segments)
                continue
            growing = partial / f"{file.name}{GROWING}"
            size = growing.stat().st_size if growing.exists() else 0
            if size == file.size:
                _close(growing, file)
                held += len(file.segments)
                continue
            whole = min(size, file.size) // manifest.segment_bytes
            if size != whole * manifest.segment_bytes:
                os.truncate(growing, whole * manifest.segment_bytes)
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
        """Whether a folder has every file of its manifest, by size; `heal` reads them."""
        try:
            manifest = Manifest.read((folder / _MANIFEST).read_bytes())
            return all((folder / f.name).stat().st_size == f.size for f in manifest.files)
        except (OSError, WireError):
            return False

    def _folder(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ReplyRefusedError("a model is named by a SHA-256, 64 hexadecimal digits.")
        return self.root / digest

    def _partial(self, digest: str) -> Path:
        return self.root / f".{digest}{PARTIAL}"

    def _locked(self) -> FileLock:
        """Return a lock for the ``with`` statement: one node of this machine at a time."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".lock")


def _is_sound(folder: Path) -> bool:
    try:
        manifest = Manifest.read((folder / _MANIFEST).read_bytes())
        return manifest.digest == folder.name and all(
            _known_sha256(folder / file.name) == file.sha256 for file in manifest.files
        )
    except (OSError, WireError):
        return False


def _known_sha256(path: Path) -> str:
    found = path.stat()
    return _sha256_once(path, found.st_ino, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256_once(path: Path, inode: int, changed: int) -> str:
    return file_sha256(path)


def _close(growing: Path, file: ModelFile) -> None:
    """Give a file that has grown to its size its name, if it is what it should be."""
    found = file_sha256(growing)
    if found != file.sha256:
        growing.unlink()
        raise ModelError(
            f"'{file.name}' of the server's model came in right segments and is another file on "
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


def model_path(config: ModelConfig, node: NodeContext) -> str | None:
    """Return the folder of this node's model; None: where the job's configuration says.

    Raises ReplyRefusedError if the model that the server sent is not here any more.
    """
    if node.settings.model_path is not None:
        return node.settings.model_path
    if not _from_server(config):
        return None
    digest = Scratch(node.scratch).model()
    folder = _store(node).find(digest) if digest is not None else None
    if folder is None:
        raise ReplyRefusedError(
            "the server's model is not on this node any more: its FEDPRUNE_HOME was emptied. It "
            "can take part in the next run."
        )
    return str(folder)


def lacks_model(config: ModelConfig, node: NodeContext, digest: str) -> bool:
    """Return whether the server has to send the model before this node can load it.

    Raises ModelError if it would have to, and the operator takes none.
    """
    if node.settings.model_path is not None or not _from_server(config):
        return False
    store = _store(node)
    store.heal(digest)
    if store.find(digest) is None:
        if not node.settings.most_model_bytes:
            raise ModelError(
                "`max-model-gb` in the node's --node-config is 0: it takes no model from a server. "
                "Give it its own copy, `model-path`, or raise the limit."
            )
        return True
    store.sweep(digest)
    Scratch(node.scratch).save_model(digest)
    return False


def take_model(node: NodeContext, part: ModelSegment) -> int:
    """Keep a part of a model and return how many of its segments are here.

    Raises FedpruneError if the part is refused, or there is no room for the model.
    """
    store = _store(node)
    if part.number >= 0:
        return store.add(part.digest, part.number, part.data)
    try:
        manifest = Manifest.read(part.data)
    except WireError as error:
        raise ReplyRefusedError(str(error)) from None
    if manifest.digest != part.digest:
        raise ReplyRefusedError("the manifest of the model is not the one that was announced.")
    return store.begin(manifest)


def _from_server(config: ModelConfig) -> bool:
    there = config.path != "" and Path(config.path).expanduser().is_dir()
    return config.source == "server" and not there


def _store(node: NodeContext) -> ModelStore:
    return ModelStore(node.settings.most_model_bytes)


def dense_model(config: RunConfig, node: NodeContext) -> LoadedModel:
    """Return the dense model with what the run prunes of it; nodes of a process share it."""
    path = model_path(config.model, node)
    return _selected(config.model, path, config.pruner)


@lru_cache(maxsize=1)
def _selected(config: ModelConfig, path: str | None, pruner: PrunerConfig) -> LoadedModel:
    return select(model_at(config, path), pruner)


@lru_cache(maxsize=1)
def model_at(config: ModelConfig, path: str | None) -> LoadedModel:
    """Return the dense model of a folder; None: where the configuration says."""
    try:
        return load_model(config, path)
    except ModelError as error:
        if path is None:
            raise
        raise ModelError(str(error), outside=_without_path(error.outside, path)) from error


def _without_path(text: str, path: str) -> str:
    """Return a message without the place where a node keeps its model."""
    for folder in (os.path.expanduser(path), path):
        text = text.replace(f"'{folder}", "'<model-path>")
        if "/" in folder:  # else it may be any word
            text = text.replace(folder, "<model-path>")
    return text


def block_shapes(config: RunConfig, node: NodeContext) -> list[dict[str, tuple[int, int]]]:
    """Return for each block of this node's model linear -> (d_out, d_in); no weight is read."""
    return _model_shapes(config.model, model_path(config.model, node))


_model_shapes = lru_cache(maxsize=1)(model_shapes)


def model_fingerprint(config: RunConfig, node: NodeContext) -> Fingerprint:
    """Return the fingerprint of this node's model."""
    return _fingerprint(config.model, model_path(config.model, node))


@lru_cache(maxsize=1)
def _fingerprint(config: ModelConfig, path: str | None) -> Fingerprint:
    return fingerprint(model_at(config, path))
