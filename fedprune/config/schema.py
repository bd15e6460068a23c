"""The configuration's types: one frozen model a group, with what each key may hold.

Each key's default and meaning stand once, in ``conf/<group>/*.yaml``, where users read them; the
types here have no defaults, so that the two cannot drift and a configuration that travels is
whole. A group whose keys depend on a choice is a union: `StrategyConfig` and its subclasses, one a
method, which register themselves (:func:`register_strategy`); `PrunerConfig`; `DataConfig`.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError
from fedprune.plugins import PRUNERS, plugin_names


def _not_empty(text: str) -> str:
    if not text:
        raise PydanticCustomError("empty", "must not be empty")
    return text


def _matching(pattern: str, expected: str) -> AfterValidator:
    """Return the rule that a text looks like ``pattern``, which is ``expected`` in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {expected}")
        return text

    return AfterValidator(check)


def _read_pattern(value: object) -> Pattern:
    if isinstance(value, Pattern):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be text")
    try:
        return Pattern.parse(value)
    except ConfigError as error:
        raise PydanticCustomError("sentence", str(error).replace("{", "{{")) from None


Text = Annotated[str, AfterValidator(_not_empty)]
Label = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "a label of letters, digits, '_' and '-', 64 at most"
    ),
]
Device = Annotated[
    str, _matching(r"auto|cpu|cuda(:[0-9]{1,3})?", "'auto', 'cpu', 'cuda' or 'cuda:N'")
]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Payload = Literal["masks", "weights", "sums", "moments", "gradients"]
PAYLOADS: tuple[Payload, ...] = get_args(Payload)
"""What can leave a node, by how much of its texts that can tell: masks least."""

Bits = Literal[4, 8]
GroupSize = Literal[32, 64, 128]
Group = Literal["layer", "row", "column"]
"""The set within which weights or votes compete: whole matrix, one output, one input."""


class Section(BaseModel):
    """A group of keys: frozen, hashable, compared by value; a key that it has not is refused.

    Numbers are not text and text is no number; a whole number stands for a float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _harmless(cls, value: object) -> object:
        """Refuse what no key may hold, whatever it is for."""
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("must fit in 64 bits")
        if isinstance(value, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            raise ValueError("must be text without control characters")
        return value


class Choice(Section):
    """A section whose keys depend on a choice: this type has those of all, a subclass adds its own.

    Code that serves every choice may read a key of :attr:`neutral` from any of them: one that has
    no such key does what the neutral value says.
    """

    neutral: ClassVar[Mapping[str, object]] = {}

    def __getattr__(self, name: str) -> Any:
        """Return a neutral value: only asked for what the type has no key for."""
        if name in type(self).neutral:
            return type(self).neutral[name]
        raise AttributeError(f"'{type(self).__name__}' has no key '{name}'.")


class ModelConfig(Section):
    """Which model is pruned, and where nodes have it from."""

    name: Literal["demo", "hf"]
    path: str
    revision: Text | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    source: Literal["local", "server"]


class DataConfig(Choice):
    """Which texts calibrate and evaluate, and how clients share them.

    `name` labels the results. Evaluation reads `heldout_path`, else `heldout_split` (hub), else
    the share `heldout_fraction` of the documents, at most `heldout_documents` of them, joined by
    `joiner`.
    """

    name: Label
    source: Literal["stdlib", "files", "hub", "node"]
    path: str
    max_documents: Count | None
    text_key: Text
    group_key: Text | None
    glob: Text
    heldout_path: Text | None
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    heldout_documents: Count | None
    joiner: Literal["eos", "space", "blank_line"]
    partition: Literal["by_group", "iid", "linear", "square", "exponential", "natural", "dirichlet"]
    alpha: Annotated[float, Field(gt=0)]
    sampling: Literal["packed", "published"]

    neutral: ClassVar[Mapping[str, object]] = {
        "subset": None,
        "split": "train",
        "split_file": None,
        "heldout_split": None,
        "heldout_file": None,
        "revision": None,
    }

    @property
    def whole_documents(self) -> bool:
        """Whether texts stay as they are, however long: the published protocols need that."""
        return self.sampling == "published" or self.joiner != "eos"


class HubDataConfig(DataConfig):
    """A data set of the hub, or a folder that `datasets` opens: which parts of it are read."""

    subset: Text | None
    split: Text
    split_file: Text | None
    heldout_split: Text | None
    heldout_file: Text | None
    revision: Text | None


_ENTRIES = re.compile(r",(?![^{]*\})")  # a comma in braces is one of an expression


def _split(text: str) -> tuple[str, ...]:
    """Return the entries of a list of names and ``re:`` patterns."""
    return tuple(entry.strip() for entry in _ENTRIES.split(text)) if text else ()


def _names_or_patterns(text: str) -> str:
    for entry in _split(text):
        if not entry.removeprefix("re:"):
            raise ValueError("must be names or 're:' patterns, separated by commas, none empty")
        try:
            if entry.startswith("re:"):
                re.compile(entry.removeprefix("re:"))
        except re.error as error:
            raise ValueError(
                f"must have regular expressions after 're:', but '{entry[:60]}' is none ({error})"
            ) from None
    return text


Selection = Annotated[str, Field(max_length=2000), AfterValidator(_names_or_patterns)]
"""Names of blocks, modules or linears, or ``re:`` patterns of them, separated by commas."""


def _known_pruner(name: str) -> str:
    if name not in PRUNER_TYPES and name not in (brought := plugin_names(PRUNERS)):
        raise PydanticCustomError("choice", "unknown", {"choices": (*PRUNER_TYPES, *brought)})
    return name


class PrunerConfig(Choice):
    """How a client prunes its blocks: the keys of every pruner, plugins included."""

    name: Annotated[str, AfterValidator(_known_pruner)]
    group: Group
    pattern: Annotated[Pattern, PlainValidator(_read_pattern), PlainSerializer(str)]
    seq_len: Annotated[int, Field(ge=2)]
    num_calibration_samples: Count
    device: Device
    batch_size: Count
    hidden_memory_mb: Annotated[int, Field(ge=0)] | None
    targets: Selection
    ignore: Selection

    @property
    def target_entries(self) -> tuple[str, ...]:
        """The entries of `targets`; none: everything is pruned."""
        return _split(self.targets)

    @property
    def ignore_entries(self) -> tuple[str, ...]:
        """The entries of `ignore`."""
        return _split(self.ignore)

    neutral: ClassVar[Mapping[str, object]] = {
        "damping": 0.01,
        "block_size": 128,
        "bits": None,
        "group_size": 128,
        "symmetric": True,
        "act_order": False,
        "two_sided": False,
    }

    prunes: ClassVar[bool] = True
    """Whether weights become zero, as `sparsity` says."""


class MomentsPrunerConfig(PrunerConfig):
    """A pruner that solves with the second moments of the inputs."""

    damping: Share


class AlpsConfig(MomentsPrunerConfig):
    """ALPS, which may know what the loss says of the outputs."""

    two_sided: bool


class SparseGptConfig(MomentsPrunerConfig):
    """SparseGPT, which masks `block_size` columns at a time; survivors may be quantised."""

    block_size: Count
    bits: Bits | None
    group_size: GroupSize | None
    symmetric: bool


class RoundingConfig(PrunerConfig):
    """Rounding to a few bits, entry by entry."""

    damping: Share
    bits: Bits
    group_size: GroupSize | None
    symmetric: bool

    prunes = False


class GptqConfig(MomentsPrunerConfig):
    """GPTQ, which rounds column after column."""

    bits: Bits
    group_size: GroupSize | None
    symmetric: bool
    act_order: bool

    prunes = False


class StructuredConfig(MomentsPrunerConfig):
    """A pruner that removes whole units, so that the matrices become smaller."""

    structure: Literal["ffn", "heads"]
    multiple: Count
    repair: bool


PRUNER_TYPES: Mapping[str, type[PrunerConfig]] = {
    "magnitude": PrunerConfig,
    "wanda": PrunerConfig,
    "ria": PrunerConfig,
    "sparsegpt": SparseGptConfig,
    "alps": AlpsConfig,
    "sparseswaps": MomentsPrunerConfig,
    "gptq": GptqConfig,
    "rounding": RoundingConfig,
    "structured": StructuredConfig,
}
"""Pruner -> the type of its keys; those of plugins have the keys that all share."""

SECOND_MOMENTS = tuple(n for n, t in PRUNER_TYPES.items() if issubclass(t, MomentsPrunerConfig))
"""Pruners that solve with the second moments of the inputs."""


def _known_strategy(name: str) -> str:
    if strategy_type(name) is None:
        raise PydanticCustomError("choice", "unknown", {"choices": strategy_names()})
    return name


class StrategyConfig(Choice):
    """How the server runs a round: the keys of every method.

    A method's own keys stand in its subclass, in ``fedprune/methods/<name>/config.py``.
    """

    name: Annotated[str, AfterValidator(_known_strategy)]
    min_clients: Count
    timeout: Annotated[float, Field(gt=0)]
    rejoin: Annotated[float, Field(ge=0)]
    wait: Annotated[float, Field(ge=0)]
    window: Count | None
    fraction: Share
    pooling: Literal["tokens", "clients", "scaled"]

    neutral: ClassVar[Mapping[str, object]] = {
        "client_weights": "equal",
        "most_weight": None,
        "rounding": "floor",
        "rounds": 1,
        "ramp": "none",
        "layer_fraction": 1.0,
        "layer_resources": "equal",
        "decode": False,
        "moments": "float32",
        "bits_per_weight": None,
        "max_width": None,
        "target": "pruned",
    }

    pools: ClassVar[bool] = False
    """Whether clients send statistics, which `pooling` adds up."""

    def own_options(self) -> dict[str, object]:
        """Return the method's own keys with their values, and `pooling` where it counts."""
        own = [key for key in type(self).model_fields if key not in StrategyConfig.model_fields]
        if self.pools:
            own.insert(0, "pooling")
        return {key: getattr(self, key) for key in own}

    @property
    def serves_worst(self) -> bool:
        """Whether statistics are weighed for the client that is served worst."""
        return str(self.pooling) == "worst"  # which not every method takes

    allocates: ClassVar[bool] = True
    """Whether blocks and linears can have sparsities of their own."""

    quantizes: ClassVar[bool] = False
    """Whether the server prunes itself, so that what it makes may be quantised weights."""

    pruners: ClassVar[tuple[str, ...] | None] = None
    """The pruners that go with it; None: all but those that remove units."""

    removes_units: ClassVar[bool] = False
    """Whether its server can remove whole units, the same number for all clients."""

    def check(self, run: "RunConfig") -> Iterator[str]:
        """Yield the problems between this method's keys, and with the rest of the run."""
        yield from ()


class ScheduleConfig(Section):
    """How blocks are spread over messages, and what a client's earlier blocks are meanwhile."""

    name: Literal["one_shot", "iterative"]
    blocks_per_message: Count | None
    prefix: Literal["local", "dense"]


_SPARSITY = r"0(\.[0-9]{1,6})?"
_NAMED = re.compile(rf"[^=,;\s]+=({_SPARSITY}|-)(,({_SPARSITY}|-)){{0,1023}}")


def _named_sparsities(text: str) -> str:
    names = [entry.split("=")[0] for entry in text.split(";")] if text else []
    if len(set(names)) < len(names) or not all(
        map(_NAMED.fullmatch, text.split(";") if text else ())
    ):
        raise ValueError(
            "must be linears' names, each once and with its sparsity in every block, separated by "
            "semicolons, such as 'self_attn.q_proj=0.4,0.6;mlp.up_proj=0.5,-'"
        )
    return text


class AllocationConfig(Section):
    """How the zeros are spread over blocks and linears."""

    name: Literal["uniform", "per_block", "per_linear", "owl", "sensitivity", "auto"]
    blocks: Annotated[
        str,
        _matching(
            rf"({_SPARSITY}(,{_SPARSITY}){{0,1023}})?",
            "sparsities at least 0 and below 1, one a block, separated by commas, such as "
            "'0.4,0.6'",
        ),
    ]
    linears: Annotated[str, AfterValidator(_named_sparsities)]
    threshold: Annotated[float, Field(gt=0)]
    spread: Annotated[float, Field(ge=0, lt=1)]
    texts: Count

    @property
    def listed(self) -> list[float]:
        """The sparsities in `blocks`."""
        return [float(part) for part in self.blocks.split(",")] if self.blocks else []

    @property
    def named(self) -> dict[str, list[float | None]]:
        """The sparsities in `linears`: name -> one a block, None in one that has no such linear."""
        entries = (entry.split("=") for entry in self.linears.split(";") if entry)
        return {
            name: [None if part == "-" else float(part) for part in listed.split(",")]
            for name, listed in entries
        }


class ReconstructConfig(Section):
    """Whether and how a pruned block's survivors are fitted to the dense block."""

    name: Literal["none", "fedsgd", "fedavg"]
    exchanges: Annotated[int, Field(ge=1, le=1000)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    local_steps: Annotated[int, Field(ge=1, le=1000)]
    server_rate: Annotated[float, Field(gt=0, le=10)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    holdout: Annotated[float, Field(ge=0, lt=1)]


class PrivacyConfig(Section):
    """What keeps a single client's answer from the server, and a single sample from everybody."""

    secure: bool
    min_cohort: Annotated[int, Field(ge=2)]
    epsilon: Annotated[float, Field(ge=0.01, le=100)] | None
    delta: Annotated[float, Field(ge=1e-15, le=1e-2)]
    tolerate: Annotated[int, Field(ge=0)]
    clip: Annotated[float, Field(ge=0.1, le=100)]
    first_input: Literal["auto", "public", "own"]
    public_text: str

    @property
    def noise_shares(self) -> int:
        """How many clients' noise makes a sum's; 1 where the server sees each client's own."""
        return max(1, self.min_cohort - self.tolerate) if self.secure else 1

    @property
    def first_is_public(self) -> bool:
        """Whether the first block's inputs are public text's, not the clients'."""
        protected = self.secure or self.epsilon is not None
        return self.first_input == "public" or (self.first_input == "auto" and protected)


class EvaluationConfig(Section):
    """How perplexity is measured, on which texts, and which baselines."""

    seq_len: Annotated[int, Field(ge=2)]
    max_windows: Count | None
    datasets: str
    local_only: bool
    centralized: bool
    no_client: bool
    federated: bool
    tasks: Annotated[
        str,
        _matching(
            r"([^,]+(,[^,]+)*)?",
            "tasks of lm-evaluation-harness, YAML files or 'paper', separated by commas",
        ),
    ]
    speed: bool


class FederationConfig(Section):
    """Where the command line starts the job; an empty `connection` is a local simulation."""

    num_clients: Count
    client_cpus: Count | None
    client_gpus: Annotated[float, Field(ge=0)] | None
    connection: str
    backend: Literal["ray", "inline"]


class CardConfig(Section):
    """What the exported model's card says that nothing else tells; empty texts say nothing."""

    base_model: Annotated[
        str, _matching(r"([A-Za-z0-9][\w.-]*/[\w.-]+)?", "an id on the Hub, 'org/name'")
    ]
    data_description: str
    license: Annotated[
        str, _matching(r"[a-z0-9.-]{0,64}", "an identifier of the Hub's list, such as 'apache-2.0'")
    ]


class TrackingConfig(Section):
    """Where a run's course is shown besides its results."""

    name: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
    project: Label


class RunConfig(Section):
    """Everything that decides a run's result and cost."""

    sparsity: Annotated[float, Field(ge=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]
    output_dir: str
    model: ModelConfig
    data: SerializeAsAny[DataConfig]
    pruner: SerializeAsAny[PrunerConfig]
    strategy: SerializeAsAny[StrategyConfig]
    schedule: ScheduleConfig
    allocation: AllocationConfig
    reconstruct: ReconstructConfig
    privacy: PrivacyConfig
    evaluation: EvaluationConfig
    federation: FederationConfig
    card: CardConfig
    tracking: TrackingConfig

    @field_validator("data", "pruner", "strategy", mode="before")
    @classmethod
    def _of_its_choice(cls, value: object, info: ValidationInfo) -> object:
        """Read a section as the type of what it chooses."""
        if isinstance(value, dict) and info.field_name:
            return section_type(info.field_name, value).model_validate(value)
        return value


C = TypeVar("C", bound=Section)


def replace(config: C, **changes: object) -> C:
    """Return a section with some values replaced, unchecked as by :func:`dataclasses.replace`."""
    unknown = changes.keys() - type(config).model_fields.keys()
    if unknown:
        raise TypeError(f"{type(config).__name__} has no {', '.join(sorted(unknown))}.")
    return config.model_copy(update=changes)


_STRATEGIES: dict[str, type[StrategyConfig]] = {}
_FINDERS: list[tuple[Callable[[], tuple[str, ...]], Callable[[str], type[StrategyConfig]]]] = []


def register_strategy(name: str, kind: type[StrategyConfig]) -> None:
    """Let `strategy.name` be ``name``, and its section have the keys of ``kind``."""
    _STRATEGIES[name] = kind


def find_strategies(
    names: Callable[[], tuple[str, ...]], load: Callable[[str], type[StrategyConfig]]
) -> None:
    """Let names that nobody has registered be looked up; loaded when such a name is asked for."""
    _FINDERS.append((names, load))


def strategy_names() -> tuple[str, ...]:
    """Return the names that `strategy.name` may have on this machine."""
    found = [name for names, _ in _FINDERS for name in names()]
    return tuple(dict.fromkeys([*_STRATEGIES, *found]))


def strategy_type(name: str) -> type[StrategyConfig] | None:
    """Return the type of a strategy's section, None if there is no such strategy here."""
    if name not in _STRATEGIES:
        for names, load in _FINDERS:
            if name in names():
                register_strategy(name, load(name))
    return _STRATEGIES.get(name)


DISCRIMINATORS: Mapping[str, str] = {"strategy": "name", "pruner": "name", "data": "source"}
"""Union -> the key that decides which keys it has."""

UNIONS: Mapping[str, Mapping[str, type[Section]]] = {
    "strategy": _STRATEGIES,
    "pruner": PRUNER_TYPES,
    "data": {"hub": HubDataConfig},
}
"""Union -> choice -> the type of its keys; a choice that is not here has those of all."""


def strategy_for(pruner: str) -> str:
    """Return a strategy that a pruner goes with, one that is made for it if there is one."""
    every = list(_STRATEGIES.items())
    made_for = [name for name, kind in every if kind.pruners is not None and pruner in kind.pruners]
    return (made_for or [name for name, kind in every if kind.pruners is None])[0]


SECTIONS: Mapping[str, type[Section]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""Name of a section and its type; of a union the type with the keys of all its members."""


def section_type(section: str, values: Mapping[str, object]) -> type[Section]:
    """Return the type of a section with these values, of which its discriminator decides."""
    choice = values.get(DISCRIMINATORS.get(section, ""))
    if section == "strategy" and isinstance(choice, str):
        return strategy_type(choice) or StrategyConfig
    return UNIONS.get(section, {}).get(str(choice), SECTIONS[section])
