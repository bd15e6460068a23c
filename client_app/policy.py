"""A standing policy: which jobs an operator allows without being asked, signed with their key.

A file in TOML. Who can write it but not sign gives the node no wider one.
"""

import base64
import datetime
import json
import re
import tomllib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from fedprune.config.schema import PAYLOADS, Payload
from fedprune.config.suggest import did_you_mean, show
from fedprune.errors import ConfigError
from fedprune.methods.registry import method_names
from fedprune.privacy.signing import PublicKey, SigningKey

_PURPOSE = "policy"
_SIGNATURE = re.compile(r"^signature\s*=.*\n?", re.MULTILINE)
_MOST_BYTES = 100_000
_SIGN = "fedprune approve --policy POLICY --key KEY"


@dataclass(frozen=True)
class Asked:
    """What a job asks of a node, as far as a policy has limits for it."""

    strategy: str  # `strategy.name`
    payloads: Set[str]  # what it asks to be sent
    # the fewest clients over whose sum an answer is opened; 1 where the server sees each
    cohort: int
    eps: float | None  # what the noise in the answers guarantees; None where there is none
    perplexities: bool  # whether it asks for figures of the node's own evaluation


def _strings(value: object) -> object:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise ValueError


class Policy(BaseModel):
    """What is allowed; a field's description is what its value must be."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=AliasGenerator(validation_alias=lambda name: name.replace("_", "-")),
    )

    format: Literal["fedprune-policy"] = Field(description="'fedprune-policy'")
    version: Literal[1] = Field(description="1")
    # strategies, payloads: the strategies, and what they may ask to be sent
    strategies: Annotated[tuple[str, ...], BeforeValidator(_strings)] = Field(
        description="a list of names that `strategy.name` may have"
    )
    payloads: Annotated[tuple[Payload, ...], BeforeValidator(_strings)] = Field(
        description=f"a list of some of {', '.join(PAYLOADS)}"
    )
    # the fewest clients over whose sum an answer of this site may be opened
    min_cohort: int = Field(1, ge=1, lt=2**31, description="a whole number of at least 1")
    # what the noise must guarantee at least; None asks for none
    max_eps: float | None = Field(None, gt=0, description="a number above 0")
    # the most that may leave in 24 hours, in MB of a million bytes; None sets no limit
    mb_per_day: float | None = Field(None, ge=0, description="a number of at least 0, in MB")
    # whether figures of an evaluation on the site's own texts may leave
    perplexities: bool = Field(False, description="true or false")
    # the last day on which it allows anything, in UTC
    expires: datetime.date | None = Field(None, description="a day, as 2027-01-31")
    signature: str = Field("", description=f"what `{_SIGN}` writes")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a policy's file; whether it is signed, :meth:`verify` says.

        Raises ConfigError if it cannot be read or is no policy; names what is wrong.
        """
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise _wrong(path, f"cannot be read: {error.strerror}") from None
        return cls.parse(data, path)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Self:
        """Read a policy from its file's bytes; ``path`` is what an error calls it.

        Raises ConfigError if it is no policy; names what is wrong.
        """
        fields = {str(field.validation_alias): field for field in cls.model_fields.values()}
        if len(data) > _MOST_BYTES:
            raise _wrong(path, f"has more than {_MOST_BYTES:,} bytes")
        try:
            plain = tomllib.loads(data.decode())
            found = cls.model_validate(plain)
        except ValidationError as error:
            detail = error.errors()[0]
            key = str(detail["loc"][0])
            if key not in fields:
                raise _wrong(path, f"has {show(key)}, no key.{did_you_mean(key, fields)}") from None
            value = f", got {show(plain[key])}" if key in plain else ""
            raise _wrong(path, f"needs `{key}`: {fields[key].description}{value}") from None
        except (ValueError, RecursionError) as error:
            raise _wrong(path, f"is no TOML: {error}") from None
        for name in found.strategies:
            if name not in method_names():
                meant = did_you_mean(name, method_names())
                raise _wrong(path, f"names {show(name)} in `strategies`, which is none.{meant}")
        return found

    def verify(self, key: PublicKey) -> None:
        """Trust it or raise.

        Raises ConfigError if it has no signature of this key.
        """
        try:
            signature = base64.b64decode(self.signature, validate=True)
        except ValueError:
            signature = b""
        if not key.holds(signature, self._content(), purpose=_PURPOSE, run=""):
            why = "was changed after it was signed, or by another key" if signature else ""
            raise ConfigError(
                f"The standing policy {why or 'has no signature'}. After a look at it: {_SIGN}"
            )

    def limits(self, asked: Asked, today: datetime.date) -> Iterator[str]:
        """Yield each limit that a job is beyond, in a sentence that names it."""
        if self.expires is not None and today > self.expires:
            yield f"`expires` was {self.expires}."
        if asked.strategy not in self.strategies:
            yield (
                f"`strategies` has {', '.join(map(show, self.strategies))}, this job's is "
                f"{show(asked.strategy)}."
            )
        if more := sorted(set(asked.payloads) - set(self.payloads)):
            yield (
                f"`payloads` has {', '.join(self.payloads)}, this job asks for "
                f"{' and '.join(more)}."
            )
        if asked.cohort < self.min_cohort:
            opened = f"opens sums over {asked.cohort} clients"
            if asked.cohort == 1:
                opened = "shows the server each client's own answer"
            yield (
                f"`min-cohort` is {self.min_cohort}, this job {opened}: `privacy.secure`, "
                "`privacy.min_cohort`."
            )
        if self.max_eps is not None and (asked.eps is None or asked.eps > self.max_eps):
            noise = "has no noise" if asked.eps is None else f"allows {asked.eps:g}"
            yield f"`max-eps` is {self.max_eps:g}, this job {noise}: `privacy.epsilon`."
        if asked.perplexities and not self.perplexities:
            yield (
                "`perplexities` is false, this job measures them here: "
                "`evaluation.local_only`, `evaluation.federated`."
            )

    @property
    def bytes_per_day(self) -> int | None:
        """The ``mb-per-day`` in bytes; None for no limit."""
        return None if self.mb_per_day is None else round(self.mb_per_day * 1_000_000)

    def told(self) -> Iterator[str]:
        """Yield in plain sentences what it allows."""
        yield f"Without asking it allows {', '.join(self.strategies)} to take"
        yield f"  {', '.join(self.payloads)}{', and perplexities' if self.perplexities else ''},"
        if self.min_cohort > 1:
            yield f"  opened only in sums over {self.min_cohort} clients or more,"
        else:
            yield "  also where the server sees this site's own answer,"
        if self.max_eps is None:
            yield "  without noise,"
        else:
            yield f"  with noise that guarantees eps {self.max_eps:g} or less,"
        most = "as much as it likes" if self.mb_per_day is None else f"{self.mb_per_day:g} MB"
        until = "for ever" if self.expires is None else f"until {self.expires}"
        yield f"  {most} in 24 hours, {until}."

    def _content(self) -> bytes:
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def signed_text(text: str, policy: Policy, key: SigningKey) -> str:
    """Return a policy's file with a signature in place of the one that it has, if any."""
    made = base64.b64encode(key.sign(policy._content(), purpose=_PURPOSE, run="")).decode()
    rest = _SIGNATURE.sub("", text)
    return rest + ("" if rest.endswith("\n") else "\n") + f'signature = "{made}"\n'


def _wrong(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The standing policy '{path}' {why}. docs/privacy.md shows one.",
        outside="Its standing policy cannot be used; its own log says why.",
    )
