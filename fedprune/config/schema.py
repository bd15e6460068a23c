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
    `revision`); `dtype` is 'auto' (as stored), 'float32', 'bfloat16' or 'float16'. `source` says
    where nodes have it from: 'local' (each has it at `path` or at its own `model-path`) or 'server'
    (those that lack it get it in verified parcels).
    """

    name: str
    path: str
    revision: str | None
    dtype: str
    source: str = "local"


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
    """How a client prunes its blocks.

    `name` is 'wanda', 'ria', 'magnitude', 'sparsegpt', 'alps' or 'sparseswaps'; weights compete
    within `group` ('layer', 'row', 'column'), or by N:M `pattern`; `seq_len` is in
    tokens, `num_calibration_samples` per client; `device` is 'auto', 'cpu', 'cuda' or 'cuda:N'.
    `batch_size` samples run through a block at a time; hidden states beyond `hidden_memory_mb`
    megabytes go to the disk (None: a share of the free memory).
    The last three solve with the second moments of the inputs: `damping` is added to their
    diagonal, in units of its mean, and `block_size` is the number of columns that SparseGPT masks
    at a time.
    """

    name: str
    group: str
    pattern: Pattern
    seq_len: int
    num_calibration_samples: int
    device: str
    batch_size: int
    hidden_memory_mb: int | None
    damping: float
    block_size: int


@dataclass(frozen=True)
class StrategyConfig:
    """How the server runs the round and makes one pruned model of the clients' replies.

    `name` is 'fedprllm' (votes), 'fedspallm' (averaged survivors), 'fedstats' (summed column
    statistics) or 'fedhessian' (summed second moments). A strategy leaves the keys of another at
    their defaults.

    All: `plugin` is the entry point of an installed class that takes the place of ours on the
    server, while clients do what `name` says; it needs `min_clients`; `timeout`, `rejoin` and
    `wait` are in seconds, `window` in messages (None: a reply's size decides); `fraction` is the
    share of accepted clients that take part.

    Votes: they compete within `group` ('layer', 'row', 'column'); `ties` is 'magnitude', 'index'
    or 'random'; a client counts by `client_weights` ('equal', 'samples', 'tokens'). fedprllm:
    `majority_floor` lets only votes of more than half prune; `scaling` multiplies survivors by the
    share of clients that kept them; `decode` fits column norms to the masks, brings them to one
    scale and prunes with their sum.

    fedspallm: `average` is 'l0' (over the clients that kept a weight) or 'fedavg' (over all);
    `expansion` prunes on to the sparsity where clients disagree, a number of zeros rounded by
    `rounding` ('ceil', 'floor'; the other strategies: 'floor'). It runs `rounds` rounds, whose
    sparsity grows by `ramp` ('none', 'linear', 'cubic'). A client prunes the share
    `layer_fraction` of the blocks on average, the same for all or by `layer_resources` ('equal',
    'measured'), drawn by `layer_draw` ('stratified', 'independent') such that `coverage` clients
    prune each block; `layer_weights` weighs replies equally or by inverse inclusion probability
    ('equal', 'inverse').

    fedstats, fedhessian and the statistics behind the allocation 'owl': `pooling` adds those of
    clients by 'tokens' (as if their texts were in one place), by 'clients' (the same for each) or
    'scaled' (each to the same total). fedstats: `downlink` is what clients of an iterative run get
    back, 'sums', 'masks' or the shorter ('auto'). fedhessian: `moments` travel as 'float32',
    'float16', or as sketches 'eigen' or 'nystrom' of at most `bits_per_weight` (None: their rank
    is a sixteenth of the width); inputs wider than `max_width` (None: none) send column statistics
    only.
    """

    name: str
    plugin: str | None
    min_clients: int
    timeout: float
    rejoin: float
    wait: float
    window: int | None
    fraction: float
    group: str
    ties: str
    client_weights: str
    majority_floor: bool
    scaling: bool
    decode: bool
    average: str
    expansion: bool
    rounding: str
    rounds: int
    ramp: str
    layer_fraction: float
    layer_resources: str
    layer_draw: str
    coverage: int
    layer_weights: str
    pooling: str
    downlink: str
    moments: str
    bits_per_weight: float | None
    max_width: int | None


@dataclass(frozen=True)
class ScheduleConfig:
    """How blocks are spread over messages.

    `name` is 'one_shot' (`blocks_per_message` share one; None: the model's size decides) or
    'iterative' (a block a message). `prefix` says what a client's earlier blocks are
    while it measures a later one: 'local' (as it pruned them) or 'dense'.
    """

    name: str
    blocks_per_message: int | None
    prefix: str


@dataclass(frozen=True)
class AllocationConfig:
    """How the zeros are spread over blocks.

    `name` is 'uniform', 'per_block' (`blocks` lists a sparsity for each block, separated by
    commas) or 'owl' (blocks with more outliers, weights whose Wanda score is above `threshold`
    times the mean, become less sparse; the least and the most sparse block are twice `spread`
    apart).
    """

    name: str
    blocks: str
    threshold: float
    spread: float


@dataclass(frozen=True)
class EvaluationConfig:
    """How perplexity is measured: windows of `seq_len` tokens, on which texts, which baselines.

    `datasets` names presets of `data` or paths, separated by commas, that are evaluated in
    addition to the held-out part of `data`. With `federated` each client measures the dense and
    the pruned model on its own held-out text. `tasks` lists tasks of lm-evaluation-harness, YAML
    files that describe one, or 'paper', separated by commas.
    """

    seq_len: int
    max_windows: int | None
    local_only: bool
    centralized: bool
    datasets: str
    federated: bool
    tasks: str


@dataclass(frozen=True)
class CardConfig:
    """What the exported model's card says that nothing else tells; empty texts say nothing.

    `base_model` is the model's id on the Hub, `data_description` a sentence on the clients' texts,
    `license` an identifier of the Hub's list.
    """

    base_model: str
    data_description: str
    license: str


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run's course is shown besides its results.

    `name` is 'none', 'tensorboard', 'wandb', 'mlflow' or 'trackio'; `project` is what runs are
    gathered under there.
    """

    name: str
    project: str


@dataclass(frozen=True)
class FederationConfig:
    """Where the command line starts the job; an empty `connection` is a local simulation.

    `client_cpus` and `client_gpus` of a simulated client are chosen where they are None. `backend`
    of a simulation is 'ray' (a process a client) or 'inline' (all in this process).
    """

    num_clients: int
    client_cpus: int | None
    client_gpus: float | None
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
    card: CardConfig
    tracking: TrackingConfig


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
