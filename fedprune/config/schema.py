"""The typed configuration: frozen, flat sections that mirror `conf/`, and the list of its keys.

The dataclasses hold values only; `checks.py` says which values are right.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass

from fedprune.config.pattern import Pattern

Value = str | int | float | bool | Pattern | None


@dataclass(frozen=True)
class ModelConfig:
    """Which model is pruned.

    `name` is 'demo' (ships with the project) or 'hf' (`path` is a local folder or a hub id, at
    `revision`); `dtype` is 'auto' (as stored), 'float32', 'bfloat16' or 'float16'.
    """

    name: str
    path: str
    revision: str | None
    dtype: str


@dataclass(frozen=True)
class DataConfig:
    """Which texts calibrate and evaluate, and how clients share them.

    `name` labels the results. `source` is 'stdlib', 'files', 'hub' or 'node' (the folder that a
    node's own settings name). Evaluation reads `heldout_path`, else `heldout_split` (hub), else
    the share `heldout_fraction` of the documents, at most `heldout_documents` of them, joined by
    `joiner` ('eos', 'space', 'blank_line'). `split_file` and `heldout_file` are the files of a hub
    data set that hold the splits. `partition` is a name of `fedprune.data.partitions.HOWS`,
    `alpha` the concentration of 'dirichlet'; `sampling` is 'packed' or 'published'.
    """

    name: str
    source: str
    path: str
    subset: str | None
    split: str
    revision: str | None
    text_key: str
    group_key: str | None
    glob: str
    heldout_path: str | None
    heldout_fraction: float
    partition: str
    heldout_split: str | None = None
    max_documents: int | None = None
    split_file: str | None = None
    heldout_file: str | None = None
    heldout_documents: int | None = None
    alpha: float = 1.0
    sampling: str = "packed"
    joiner: str = "eos"

    @property
    def whole_documents(self) -> bool:
        """Whether texts stay as they are, however long: the published protocols need that."""
        return self.sampling == "published" or self.joiner != "eos"


@dataclass(frozen=True)
class PrunerConfig:
    """How a client makes its masks.

    `name` is 'wanda', 'ria' or 'magnitude'; weights compete within `group` ('layer', 'row',
    'column'); `seq_len` is in tokens, `num_calibration_samples` per client; `device` is 'auto',
    'cpu', 'cuda' or 'cuda:N'.
    """

    name: str
    group: str
    pattern: Pattern
    seq_len: int
    num_calibration_samples: int
    device: str


@dataclass(frozen=True)
class StrategyConfig:
    """How the server runs the round and counts votes.

    `timeout` and `wait` are in seconds, `window` in messages (None: a reply's size decides). Votes
    compete within `group` ('layer', 'row', 'column'); `ties` is 'magnitude', 'index' or 'random';
    `majority_floor` lets only votes of more than half prune; `scaling` multiplies survivors by the
    share of clients that kept them; a client counts by `client_weights` ('equal', 'samples',
    'tokens'); `fraction` is the share of accepted clients that take part.
    """

    name: str
    min_clients: int
    timeout: float
    wait: float
    window: int | None
    group: str
    ties: str
    majority_floor: bool
    scaling: bool
    client_weights: str
    fraction: float


@dataclass(frozen=True)
class ScheduleConfig:
    """How blocks are spread over messages.

    `name` is 'one_shot' or 'iterative' (a block a message); None lets the model's size decide.
    """

    name: str
    blocks_per_message: int | None


@dataclass(frozen=True)
class AllocationConfig:
    """How the zeros are spread over blocks.

    `name` is 'uniform' or 'per_block'; then `blocks` lists a sparsity for each block, separated
    by commas.
    """

    name: str
    blocks: str


@dataclass(frozen=True)
class EvaluationConfig:
    """How perplexity is measured: windows of `seq_len` tokens, on which texts, which baselines.

    `datasets` names presets of `data` or paths, separated by commas, that are evaluated in
    addition to the held-out part of `data`.
    """

    seq_len: int
    max_windows: int | None
    local_only: bool
    centralized: bool
    datasets: str


@dataclass(frozen=True)
class FederationConfig:
    """Where the command line starts the job; an empty `connection` is a local simulation.

    `backend` of a simulation is 'ray' (a process a client) or 'inline' (all in this process).
    """

    num_clients: int
    client_cpus: int
    client_gpus: float
    connection: str
    backend: str


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result and cost.

    `sparsity` is the share of zeros among prunable weights; an empty `output_dir` lets the
    program choose the folder.
    """

    sparsity: float
    seed: int
    output_dir: str
    model: ModelConfig
    data: DataConfig
    pruner: PrunerConfig
    strategy: StrategyConfig
    schedule: ScheduleConfig
    allocation: AllocationConfig
    evaluation: EvaluationConfig
    federation: FederationConfig


@dataclass(frozen=True)
class Leaf:
    """The type of one key: `kind` is str, int, float, bool or Pattern."""

    kind: type
    optional: bool


def _walk(section: type, prefix: str) -> dict[str, Leaf | type]:
    found: dict[str, Leaf | type] = {}
    for name, hint in typing.get_type_hints(section).items():
        key = f"{prefix}{name}"
        if isinstance(hint, types.UnionType):
            kind = next(part for part in typing.get_args(hint) if part is not type(None))
            found[key] = Leaf(kind, optional=True)
        elif isinstance(hint, type) and is_dataclass(hint) and hint is not Pattern:
            found[key] = hint
            found |= _walk(hint, f"{key}.")
        else:
            found[key] = Leaf(hint, optional=False)
    return found


_KEYS = _walk(RunConfig, "")
SECTIONS: Mapping[str, type] = {k: v for k, v in _KEYS.items() if isinstance(v, type)}
"""Key of a section, for example "model", and its dataclass."""
LEAVES: Mapping[str, Leaf] = {k: v for k, v in _KEYS.items() if isinstance(v, Leaf)}
"""Dotted key of a value, for example "model.path", and its type; in the order of the fields."""


def section_keys(section: str) -> list[str]:
    """Return the dotted keys of the values in one section."""
    return [key for key in LEAVES if key.startswith(f"{section}.")]


def build(values: Mapping[str, Value]) -> RunConfig:
    """Return the configuration that has the value ``values[key]`` at every key of `LEAVES`."""
    sections = {
        section: kind(**{key.partition(".")[2]: values[key] for key in section_keys(section)})
        for section, kind in SECTIONS.items()
    }
    top = {key: values[key] for key in LEAVES if "." not in key}
    return RunConfig(**top, **sections)  # type: ignore[arg-type]


def flatten(config: RunConfig) -> dict[str, str | int | float | bool | None]:
    """Return the plain value of every key of `LEAVES`; a pattern becomes its text."""
    found: dict[str, str | int | float | bool | None] = {}
    for key in LEAVES:
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        found[key] = str(value) if isinstance(value, Pattern) else value
    return found
