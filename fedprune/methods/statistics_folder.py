"""A statistics folder: what a federation's clients know of a model, kept to solve from.

One safetensors file a block, ``block-00000.safetensors``, with arrays ``{kind}.{input}.{array}``
and ``{kind}.{array}`` of whole blocks, and ``statistics.json``, written last, which says of which
model they are, who took part, how everything was collected, and how long each file is and its
SHA-256. ``docs/statistics.md`` describes every key. A folder that was cut or edited is refused.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from fedprune import __version__
from fedprune.config import RunConfig, from_earlier_yaml
from fedprune.disk import file_sha256, replace_file
from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.methods.collection import TOKENS
from fedprune.methods.sketches import rebuild
from fedprune.methods.state import Arrays
from fedprune.models.fingerprint import Fingerprint
from fedprune.models.weights import save_tensors
from fedprune.pruning.statistics import MomentStatistics, Statistic, StatisticKind, get_kind
from fedprune.wire.moments import Sketch, Triangle

MANIFEST = "statistics.json"
FORMAT = "fedprune-statistics"
VERSION = 1
_COLLECT_AGAIN = "Collect the statistics again, or take the folder from where it was whole."


@dataclass(frozen=True)
class Participant:
    """A client whose tokens are in the sums."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    site: str  # the name its operator gave it, or ""
    # partition_id, num_partitions: which share of the data it held, of how many
    partition_id: int
    num_partitions: int
    # samples, tokens: its calibration samples and the tokens in them
    samples: int
    tokens: int
    # where its samples were taken, as hashes; empty where the texts are its own
    sample_ids: tuple[str, ...] = ()

    def same_texts(self, other: "Participant") -> bool:
        """Whether two may have the same texts: the same samples, or the same node if none knows."""
        if self.sample_ids and other.sample_ids:
            return not set(self.sample_ids).isdisjoint(other.sample_ids)
        return (self.name, self.num_partitions) == (other.name, other.num_partitions)


@dataclass(frozen=True)
class Manifest:
    """What a statistics folder says of itself."""

    model: Fingerprint
    architecture: str  # its family: ``model_type`` of its configuration
    prefix: str  # where its blocks are, ``model.layers`` for instance
    # the resolved configuration of the collection, YAML; of merged ones the first's
    configuration: str
    runs: tuple[str, ...]  # the keys of the runs whose sums these are
    data: tuple[str, ...]  # labels of their data sets
    kinds: tuple[str, ...]  # the statistics that are there
    # block -> its distinct inputs, each as the linears that read it; empty without any
    inputs: tuple[tuple[tuple[str, ...], ...], ...]
    # block -> name of the linear -> (d_out, d_in)
    shapes: tuple[Mapping[str, tuple[int, int]], ...]
    participants: tuple[Participant, ...]  # who is in the sums
    # name -> ``bytes`` and ``sha256``
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # what noise guarantees about each sample, as `strategy.privacy` of the results; empty: nothing
    privacy: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the collection; of keys that came later the defaults."""
        return from_earlier_yaml(self.configuration)

    def to_json(self) -> str:
        """Return the content of ``statistics.json``."""
        head = {"format": FORMAT, "version": VERSION, "fedprune": __version__}
        plain = TypeAdapter(Manifest).dump_python(self, mode="json")
        return json.dumps({**head, **plain}, indent=1) + "\n"

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Manifest":
        """Undo :meth:`to_json`; ValueError if that made another."""
        try:
            return TypeAdapter(Manifest).validate_python(plain)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None


def block_file(block: int) -> str:
    """Return what the file of a block is called."""
    return f"block-{block:05d}.safetensors"


def write_block(folder: Path, block: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put what is known of a block on the disk; an older file of it is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    save_tensors(folder / block_file(block), tensors, {"format": FORMAT})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``statistics.json``, which makes a folder whole; the blocks' files are there."""
    names = [block_file(block) for block in range(len(manifest.shapes))]
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
    }
    replace_file(folder / MANIFEST, replace(manifest, files=files).to_json().encode())


@dataclass(frozen=True)
class StatisticsFolder:
    """Statistics to solve from, read block by block."""

    path: Path
    manifest: Manifest  # what it says of itself

    @classmethod
    def open(cls, path: str | Path) -> "StatisticsFolder":
        """Return a statistics folder, or that of a run's folder.

        Raises ConfigError if it is none, unfinished, of another version, or a file is cut or
        missing.
        """
        given = Path(path).expanduser().absolute()
        inside = given / "statistics"
        folder = inside if (inside / MANIFEST).is_file() else given
        try:
            plain = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"STATISTICS must be a statistics folder or the run that made it, there is no "
                f"`{MANIFEST}` in '{given}'. `fedprune collect` makes one; a run that was "
                "interrupted goes on with resume=FOLDER."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(folder, f"`{MANIFEST}` cannot be read: {error}") from None
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise _damaged(folder, f"`{MANIFEST}` is not of the format '{FORMAT}'")
        if plain.get("version") != VERSION:
            raise ConfigError(
                f"'{folder}' has statistics of version {plain.get('version')!r}, this release of "
                f"fedprune ({__version__}) reads version {VERSION}. Solve with the release that "
                f"collected them ({plain.get('fedprune', 'unknown')}), or collect again."
            )
        try:
            found = cls(folder, Manifest.from_json(plain))
        except ValueError as error:
            raise _damaged(folder, f"`{MANIFEST}`: {error}") from None
        found._check_sizes()
        return found

    @property
    def num_blocks(self) -> int:
        """How many blocks the model has."""
        return len(self.manifest.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which has those of all files."""
        return file_sha256(self.path / MANIFEST)

    def check_model(self, marks: Fingerprint, shapes: Sequence[Mapping[str, object]]) -> None:
        """Refuse a model that the statistics are not of, or linears that were not collected.

        `shapes`: block -> linear that is to be pruned -> (d_out, d_in).
        """
        told = self.manifest.model
        if (told.weights, told.config) != (marks.weights, marks.config):
            raise ModelError(
                f"The statistics in '{self.path}' are of another model: weights "
                f"{told.weights[:16]} and configuration {told.config[:16]}, the one given has "
                f"{marks.weights[:16]} and {marks.config[:16]}. Give `model` as in the collection "
                f"(`model.path` '{self.manifest.config.model.path}', `model.dtype` "
                f"'{self.manifest.config.model.dtype}'), or collect statistics of this one."
            )
        both = zip(shapes, self.manifest.shapes, strict=False)
        if len(shapes) != self.num_blocks or any(dict(a).items() - b.items() for a, b in both):
            raise ModelError(
                f"The statistics in '{self.path}' are not of all linears that are to be pruned. "
                "Give `pruner.targets` and `pruner.ignore` as in the collection, or collect again."
            )

    def summary(self) -> dict[str, object]:
        """Return what results tell of it: plain JSON values."""
        told = self.manifest
        return {
            "folder": str(self.path),
            "sha256": self.digest,
            "kinds": list(told.kinds),
            "runs": list(told.runs),
            "data": list(told.data),
            "participants": len(told.participants),
            "tokens": sum(one.tokens for one in told.participants),
            "bytes": sum(int(one["bytes"]) for one in told.files.values()),
        }

    def require(self, kind: str, what: str) -> None:
        """Refuse ``what``, as "`pruner.name` 'sparsegpt'", if its statistic was not collected."""
        if kind not in self.manifest.kinds:
            there = ",".join(self.manifest.kinds)
            raise ConfigError(
                f"{what} needs the statistic '{kind}', '{self.path}' has {there}. Collect with "
                f"`strategy.statistics={there},{kind}`, or choose what these are enough for."
            )

    def linears(self, block: int, kind: str) -> dict[str, Statistic]:
        """Return linear -> statistic; linears that read the same input share the object.

        Raises ConfigError if the statistic was not collected, or its file was cut or edited.
        """
        self.require(kind, f"Block {block}")
        found: dict[str, Statistic] = {}
        shapes = self.manifest.shapes[block]
        with self._reading(block) as arrays:
            for linears in self.manifest.inputs[block]:
                own = _under(arrays, f"{kind}.{linears[0]}.")
                read = read_statistic(get_kind(kind), own, shapes[linears[0]][1])
                found |= dict.fromkeys(linears, read)
        return {name: found[name] for name in shapes if name in found}

    def block(self, block: int, kind: str) -> Arrays:
        """Return the arrays of a statistic of a whole block; errors as :meth:`linears`."""
        self.require(kind, f"Block {block}")
        with self._reading(block) as arrays:
            return _under(arrays, f"{kind}.")

    def arrays(self, block: int) -> Arrays:
        """Return everything that is known of a block; errors as :meth:`linears`."""
        with self._reading(block) as arrays:
            return _under(arrays, "")

    @contextmanager
    def _reading(self, block: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Give the arrays of a block, each read when it is looked up."""
        name = block_file(block)
        path = self.path / name
        try:
            if _digest(path) != self.manifest.files[name]["sha256"]:
                raise _damaged(self.path, f"`{name}` was edited: its SHA-256 is another")
            with safe_open(path, framework="numpy") as file:
                yield _Lazy(file)
        except (OSError, SafetensorError, KeyError, ValueError, WireError) as error:
            raise _damaged(self.path, f"`{name}`: {type(error).__name__}: {error}") from error

    def _check_sizes(self) -> None:
        names = [block_file(block) for block in range(self.num_blocks)]
        if list(self.manifest.files) != names:
            raise _damaged(self.path, f"`files` must be those of {self.num_blocks} blocks")
        for name in names:
            path, size = self.path / name, self.manifest.files[name].get("bytes")
            there = path.stat().st_size if path.is_file() else None
            if there != size:
                found = "is missing" if there is None else f"has {there} bytes"
                raise _damaged(self.path, f"`{name}` {found}, expected {size} bytes")


_DIGESTS: dict[Path, tuple[tuple[int, ...], str]] = {}
_SETTLED_NS = 2_000_000_000  # file systems tell changes apart that are so far from each other


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, read once by a process as long as it stays the same file."""
    found = path.stat()
    mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    before = _DIGESTS.get(path)
    if before is not None and before[0] == mark:
        return before[1]
    settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
    digest = file_sha256(path)
    if settled:
        _DIGESTS[path] = (mark, digest)
    return digest


class _Lazy(Mapping[str, NDArray[Any]]):
    """The arrays of an open safetensors file."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, tuple(file.keys())

    def __getitem__(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self._file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_statistic(
    kind: StatisticKind[Any], arrays: Mapping[str, NDArray[Any]], width: int
) -> Statistic:
    """Return an input's statistic of what is kept of it (:mod:`fedprune.methods.collection`).

    Raises KeyError, ValueError or WireError if they are not the kind's.
    """
    (tokens,) = (int(n) for n in arrays[TOKENS])
    rest = {name: arrays[name] for name in arrays if name != TOKENS}
    if "digits" in rest and kind.instead:  # an input too wide for the kind itself
        kind = get_kind(kind.instead)
    if "triangle" in rest:
        triangle = Triangle(rest["triangle"])
        if triangle.width != width:
            raise WireError(f"a triangle of {triangle.width} columns, expected {width}.")
        return MomentStatistics(torch.from_numpy(triangle.matrix()), tokens)
    if "vectors" in rest:
        sketch = Sketch(rest["vectors"], rest["diagonal"], "nystrom")
        return MomentStatistics(rebuild(sketch, int(rest["seed"][0])), tokens)
    if "matrix" in rest:
        rest = {"moments": rest["matrix"]}
    found: Statistic = kind.read(rest, width, tokens)
    return found


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def _damaged(folder: Path, what: str) -> ConfigError:
    return ConfigError(f"The statistics in '{folder}' are damaged: {what}. {_COLLECT_AGAIN}")
