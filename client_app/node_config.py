"""What a node's operator says in ``--node-config``: what the node has, and what it will not do.

`docs/data.md` lists the keys. What is wrong is told all at once, in the handshake, so that a node
is refused by the name of its site; a key that nobody knows is a warning, since a limit with a typo
is no limit.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
)

from fedprune.config import DataConfig
from fedprune.config.schema import PAYLOADS, Device
from fedprune.config.suggest import did_you_mean, show
from fedprune.data.texts import OwnTexts
from fedprune.errors import ConfigError

GIGABYTE = 1_000_000_000

_WHERE = "in the node's --node-config"
_LONGEST_SITE = 64


def _printable(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError
    return text


def _relative(text: str) -> str:
    if PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts:
        raise ValueError
    return text


def _site(value: object) -> str:
    """Return a name, which may be typed as a number."""
    if isinstance(value, bool) or not str(value).isprintable() or len(str(value)) > _LONGEST_SITE:
        raise ValueError
    return str(value)


def _payloads(value: object) -> tuple[str, ...]:
    found = tuple(part.strip() for part in str(value).split(","))
    if not isinstance(value, str) or not set(found) <= set(PAYLOADS):
        raise ValueError
    return found


Text = Annotated[str, AfterValidator(_printable)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
_COUNT = "a whole number of at least 1"
_FILE = "the path of a file, in quotes"


class NodeConfig(BaseModel):
    """A node's settings; a field's description is what its value must be."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        alias_generator=AliasGenerator(validation_alias=lambda name: name.replace("_", "-")),
    )

    # which share of the data it holds; also what its seeds derive from
    partition_id: int = Field(ge=0, lt=2**31, description="a whole number of at least 0")
    num_partitions: Count = Field(0, description=_COUNT)  # of how many; 0 if nobody said
    # the name that messages and results call it by
    site: Annotated[
        str,
        BeforeValidator(_site),
        Field(description=f"at most {_LONGEST_SITE} printable characters"),
    ] = ""
    # data_path, text_key, glob: its own texts, and how to read them in place of what the job says
    data_path: Text | None = Field(None, description="the path of a file or folder, in quotes")
    text_key: Text | None = Field(None, description="the name of a field, in quotes")
    glob: Annotated[Text, AfterValidator(_relative)] | None = Field(
        None, description="a relative pattern in quotes, such as '**/*.txt'"
    )
    # the folder of its own copy of the model
    model_path: Text | None = Field(None, description="the path of a model's folder, in quotes")
    # the most that models from servers may take here, in GB; 0 takes none
    max_model_gb: float = Field(
        50.0, ge=0, description="a number of at least 0, in GB; 0 takes no model from a server"
    )
    # min_samples, min_tokens: it takes part only in jobs that calibrate on as many: the fewer, the
    # more of each text
    min_samples: Count = Field(1, description=_COUNT)
    min_tokens: Count = Field(1, description=_COUNT)
    # it calibrates on no more than these
    max_samples: Count | None = Field(None, description=_COUNT)
    # what may leave it, of `PAYLOADS`
    may_send: Annotated[
        tuple[str, ...],
        BeforeValidator(_payloads),
        Field(description=f"some of {', '.join(PAYLOADS)}, separated by commas, in quotes"),
    ] = PAYLOADS
    # the fewest clients over whose sum its answers may be opened; 1 lets the server see them, and
    # None leaves it to the roster
    min_cohort: Count | None = Field(None, description=_COUNT)
    # whether a job waits for its operator's word: 'ask' or 'all'
    approve: Literal["all", "ask"] = Field("all", description="'all' or 'ask'")
    # the file that records what leaves the node
    ledger: Text | None = Field(None, description=_FILE)
    # the file of the key that its site signs with
    signing_key: Text | None = Field(None, description=_FILE)
    # the file of the sites whose keys it trusts; needs a ``signing_key``
    roster: Text | None = Field(None, description=_FILE)
    # the file of the jobs that it allows without asking
    policy: Text | None = Field(None, description=_FILE)
    # the public key that must have signed the policy; that of ``signing_key`` if left out
    operator_key: Text | None = Field(
        None, description="an Ed25519 public key in quotes, 'ssh-ed25519 AAAA...'"
    )
    # the share of blocks that it prunes at most
    layer_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a number above 0 and at most 1, the share of blocks that it may prune",
    )
    threads: Count | None = Field(None, description=_COUNT)  # the processor's threads that it uses
    # where it computes, whatever the job says
    device: Device | None = Field(None, description="'auto', 'cpu', 'cuda' or 'cuda:N'")

    _problems: tuple[str, ...] = PrivateAttr(())
    _warnings: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def read(cls, values: Mapping[str, str | int | float | bool]) -> Self:
        """Read a node's configuration.

        Raises ConfigError if it has no proper ``partition-id``: without it a node has no name.
        Everything else that is wrong is among the ``problems``.
        """
        fields = {str(field.validation_alias): field for field in cls.model_fields.values()}
        try:
            wrong = []
            found = cls.model_validate(values)
        except ValidationError as error:
            wrong = list(dict.fromkeys(str(detail["loc"][0]) for detail in error.errors()))
            if "partition-id" in wrong:
                raise ConfigError(
                    f"`partition-id` {_WHERE} must be {fields['partition-id'].description}, "
                    f"got {values.get('partition-id')!r}. Start the SuperNode with --node-config "
                    "'partition-id=0', a different number for each node."
                ) from None
            found = cls.model_validate({k: v for k, v in values.items() if k not in wrong})
        problems = [
            f"`{key}` {_WHERE} must be {fields[key].description}, got {show(values[key])}."
            for key in wrong
        ]
        found._problems = (*problems, *found._contradictions())
        found._warnings = tuple(
            f"{show(key)} {_WHERE} is no key and does nothing.{did_you_mean(key, fields)}"
            for key in values
            if key not in fields
        )
        return found

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the settings; the keys concerned are left at their defaults."""
        return self._problems

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does nothing: keys that nobody knows."""
        return self._warnings

    def texts(self, data: DataConfig) -> OwnTexts | None:
        """Return where this node's own texts are; None where all nodes read the same."""
        if data.source != "node":
            return None
        return OwnTexts(self.data_path, self.text_key, self.glob)

    @property
    def layer_permille(self) -> int:
        """The ``layer-fraction`` in thousandths, 0 if there is none."""
        return 0 if self.layer_fraction is None else max(1, round(self.layer_fraction * 1000))

    @property
    def most_model_bytes(self) -> int:
        """The ``max-model-gb`` in bytes."""
        return round(self.max_model_gb * GIGABYTE)

    def _contradictions(self) -> Iterator[str]:
        if self.max_samples is not None and self.max_samples < self.min_samples:
            yield (
                f"`max-samples` {_WHERE} must be at least `min-samples`, {self.min_samples}, "
                f"got {self.max_samples}."
            )
        if self.roster is not None and self.signing_key is None:
            yield (
                f"`roster` {_WHERE} needs `signing-key`, the key that this site has in it: what "
                "the site did not sign itself it does not trust."
            )
        if self.policy is not None and self.signing_key is None and self.operator_key is None:
            yield (
                f"`policy` {_WHERE} needs `operator-key` or `signing-key`, the key that signed it."
            )
        if 0 < self.num_partitions <= self.partition_id:
            yield (
                f"`partition-id` {_WHERE} must be below `num-partitions`, {self.num_partitions}, "
                f"got {self.partition_id}."
            )
