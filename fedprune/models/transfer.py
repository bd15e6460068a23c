"""A model's files on their way from the server to a node that lacks them.

Only configuration, tokenizer and safetensors files travel: nothing in them runs when they are
opened. A node reads the manifest first, which may come from anyone: every name and number in it is
checked, and a name leads nowhere but into the folder that the node made for it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from fedprune.errors import ModelError, WireError
from fedprune.models.folder import CONFIG, SAFETENSORS, SAFETENSORS_INDEX, weight_files

FORMAT = "fedprune-model-1"
MOST_SEGMENT_BYTES = 64_000_000
MOST_MANIFEST_BYTES = 32_000_000
_LEAST_SEGMENT_BYTES = 1 << 12
_MOST_FILES = 2_000
_MOST_BYTES = 1 << 42
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WEIGHTS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.safetensors")

SMALL_FILES = frozenset(
    {
        CONFIG,
        "generation_config.json",
        SAFETENSORS_INDEX,
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
    }
)
"""The files that may travel beside ``*.safetensors``."""


@dataclass(frozen=True)
class ModelFile:
    """One file."""

    name: str  # its name in the model's folder
    size: int  # its bytes, at least one
    sha256: str  # of all of them, in hex
    segments: tuple[str, ...]  # SHA-256 of each segment


@dataclass(frozen=True)
class Segment:
    """One segment: the bytes of ``file`` from ``start`` on, and their SHA-256."""

    file: ModelFile
    start: int
    size: int
    sha256: str

    def check(self, data: bytes) -> None:
        """Raise ``WireError`` unless these are the segment's bytes."""
        if len(data) != self.size or hashlib.sha256(data).hexdigest() != self.sha256:
            raise WireError(
                f"a segment of '{self.file.name}' is not what the model's manifest says: "
                f"{self.size} bytes expected, {len(data)} came. "
                "Leave the server's model alone while a run uses it."
            )


@dataclass(frozen=True)
class Manifest:
    """A model's files in the order in which they travel."""

    segment_bytes: int  # the bytes of a segment; the last of a file may be shorter
    files: tuple[ModelFile, ...]

    @cached_property
    def text(self) -> bytes:
        """The manifest as it travels: JSON in one form only, so that its hash names the model."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, in hex."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in the order in which they travel; none spans two files."""
        return tuple(segment for file in self.files for segment in self._cut(file))

    def _cut(self, file: ModelFile) -> Iterator[Segment]:
        for number, sha256 in enumerate(file.segments):
            start = number * self.segment_bytes
            yield Segment(file, start, min(self.segment_bytes, file.size - start), sha256)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read and check a manifest.

        Raises WireError if it is malformed, names what may not travel, or is beyond every model's
        size.
        """
        try:
            if len(data) > MOST_MANIFEST_BYTES:
                raise ValueError("it is too long")
            content = json.loads(data)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError(f"its format is not '{FORMAT}'")
            if set(content) != {"format", "segment_bytes", "files"}:
                raise ValueError("it has other keys")
            segment_bytes, listed = content["segment_bytes"], content["files"]
            if type(segment_bytes) is not int or not (
                _LEAST_SEGMENT_BYTES <= segment_bytes <= MOST_SEGMENT_BYTES
            ):
                raise ValueError(f"its segments must have at most {MOST_SEGMENT_BYTES} bytes")
            if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_FILES:
                raise ValueError(f"it must list 1 to {_MOST_FILES} files")
            found = cls(segment_bytes, tuple(_file(entry, segment_bytes) for entry in listed))
            _check_files(found)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the manifest of the model is refused: {error}.") from error
        return found


def is_digest(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex."""
    return _DIGEST.fullmatch(text) is not None


def may_travel(name: str) -> bool:
    """Return whether a file of this name may be part of a model on its way."""
    return name in SMALL_FILES or _WEIGHTS.fullmatch(name) is not None


def _file(entry: object, segment_bytes: int) -> ModelFile:
    if not isinstance(entry, dict) or set(entry) != {"name", "size", "sha256", "segments"}:
        raise ValueError("a file must have a name, a size and hashes")
    name, size, sha256, segments = (entry[key] for key in ("name", "size", "sha256", "segments"))
    if not isinstance(name, str) or not may_travel(name):
        raise ValueError(
            f"{ascii(name)[:80]} may not travel: only configuration, tokenizer and safetensors do"
        )
    if type(size) is not int or not 0 < size <= _MOST_BYTES:
        raise ValueError(f"'{name}' must have between 1 and {_MOST_BYTES} bytes")
    if not isinstance(segments, list) or len(segments) != -(-size // segment_bytes):
        raise ValueError(f"'{name}' must list a hash for each segment")
    if not all(isinstance(digest, str) and is_digest(digest) for digest in (sha256, *segments)):
        raise ValueError(f"'{name}' must have SHA-256 hashes in hex")
    return ModelFile(name, size, sha256, tuple(segments))


def _check_files(manifest: Manifest) -> None:
    names = [file.name.lower() for file in manifest.files]
    if len(set(names)) != len(names):
        raise ValueError("it lists a name twice")
    if CONFIG not in names or not any(name.endswith(".safetensors") for name in names):
        raise ValueError("a model needs a configuration and weights")
    if manifest.size > _MOST_BYTES:
        raise ValueError(f"a model may have {_MOST_BYTES} bytes at most")


_PIECE = 1 << 20
_THREADS = 4


@dataclass(frozen=True)
class Offer:
    """What a server has to give."""

    manifest: Manifest  # the files and their hashes
    paths: Mapping[str, Path]  # name -> where the file lies

    @classmethod
    def of(cls, source: str, revision: str | None, segment_bytes: int) -> Self:
        """Hash a model that has been loaded; no more than a piece of each file is in memory.

        `segment_bytes`: most bytes of a segment. Raises ModelError if it is not in safetensors
        files.
        """
        paths = _files(source, revision)
        names = sorted(paths, key=lambda name: (name not in SMALL_FILES, name))
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            files = threads.map(lambda name: _hashed(name, paths[name], segment_bytes), names)
            return cls(Manifest(segment_bytes, tuple(files)), paths)

    def segment(self, number: int) -> bytes:
        """Return the bytes of a segment."""
        place = self.manifest.segments[number]
        with self.paths[place.file.name].open("rb") as file:
            file.seek(place.start)
            return file.read(place.size)


def _files(source: str, revision: str | None) -> dict[str, Path]:
    """Return name -> place of the files that a node needs to load a model."""
    weights = weight_files(source, revision)
    odd = next((path.name for path in weights if not may_travel(path.name)), None)
    if not weights or odd is not None:
        what = f"'{odd}' among its weights" if odd else "no safetensors weights"
        raise ModelError(
            f"`model.source` must be 'local' with the model '{source}', which has {what}: nodes "
            "take nothing that could run code when it is opened. Write it anew with "
            "save_pretrained(FOLDER), or copy it to every node: model.source=local."
        )
    # What the loader has just read lies beside the weights, also in the Hub's cache.
    folder = weights[0].parent
    unwanted = {SAFETENSORS_INDEX} if weights[0].name == SAFETENSORS else set()
    small = {name: folder / name for name in SMALL_FILES - unwanted}
    found = {name: path for name, path in small.items() if path.is_file() and path.stat().st_size}
    return found | {path.name: path for path in weights}


def _hashed(name: str, path: Path, segment_bytes: int) -> ModelFile:
    whole, size = hashlib.sha256(), 0
    segments: list[str] = []
    with path.open("rb") as file:
        while True:
            part, left = hashlib.sha256(), segment_bytes
            while left and (data := file.read(min(left, _PIECE))):
                whole.update(data)
                part.update(data)
                left -= len(data)
            if left == segment_bytes:
                return ModelFile(name, size, whole.hexdigest(), tuple(segments))
            segments.append(part.hexdigest())
            size += segment_bytes - left
