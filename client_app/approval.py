"""Jobs that wait for an operator's word, or that a standing policy allows without it.

What is approved is what a job does here: the model, texts, samples, strategy and evaluation of its
configuration, what it asks to be sent, and the sources that answer. A job that goes on after a
kill, the same one started again, or at another sparsity, needs no second word; one that asks for
anything else does.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from client_app.ledger import sent_in_a_day
from client_app.node import cohort, payloads
from client_app.node_config import NodeConfig
from client_app.policy import Asked, Policy
from fedprune.config import RunConfig, to_yaml
from fedprune.disk import home, replace_file
from fedprune.errors import ConfigError
from fedprune.methods.registry import get_method
from fedprune.privacy.signing import PublicKey, SigningKey
from fedprune.results.environment import source_digest

ASK = "ask"
_LEAST_PREFIX = 6
_log = logging.getLogger("flwr")
_MOST_WAITING = 1000  # a server that asks for ever must not fill the disk


@dataclass(frozen=True)
class Request:
    """A job that a node was asked to take part in."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: str  # SHA-256 of what is approved
    sends: tuple[str, ...]  # what the job asks for, of `PAYLOADS`
    site: str
    partition_id: int  # which share of the data
    asked: str  # when it was asked first, in UTC
    summary: tuple[str, ...]  # what would leave the node, in plain sentences
    configuration: str  # all of it, as YAML
    approved: str = ""  # when the operator said yes; "" before that
    # why the standing policy does not allow it, in sentences; none where there is no policy
    limits: tuple[str, ...] = ()


def check_approval(config: RunConfig, settings: NodeConfig) -> None:
    """Refuse a job that its operator must approve and did not; a new one is noted for them.

    A standing policy approves what is within all its limits. What is not waits for the operator
    where they are asked, and is refused where they are not.

    `config`: as the server sent it. In the course of a run its `sparsity` and `allocation` change.
    Raises ConfigError if it waits for the operator's word, or the policy does not allow it; names
    the limit.
    """
    asks = settings.approve == ASK
    if (not asks and settings.policy is None) or _approved(config, settings):
        return
    limits = tuple(_limits(config, settings))
    if settings.policy is not None and not limits:
        return
    beyond = f" Its standing policy does not allow it: {' '.join(limits)}" if limits else ""
    if not asks:
        raise ConfigError(f"Its operator is not asked (`approve`).{beyond}")
    key = _noted(config, settings, limits)
    raise ConfigError(
        f"Its operator has not approved this job yet (`approve` in the node's --node-config is "
        f"'{ASK}').{beyond} There: fedprune approve {key[:12]}. Then start it again."
    )


def daily_limit(config: RunConfig, settings: NodeConfig) -> int | None:
    """Return how many bytes may leave within 24 hours for a job; None where there is no limit.

    What the operator has approved by its key has none.
    """
    if settings.policy is None or _approved(config, settings):
        return None
    return _policy(settings).bytes_per_day


def _approved(config: RunConfig, settings: NodeConfig) -> bool:
    """Whether the operator has said yes to a job by its key."""
    if settings.approve != ASK:
        return False
    asked = payloads(config)
    known = _known_of(settings, _core(config))
    return any(one.approved and asked <= set(one.sends) for one in known)


def _noted(config: RunConfig, settings: NodeConfig, limits: tuple[str, ...]) -> str:
    """Note a job for the operator if it is new, and return its key."""
    sends, core = tuple(sorted(payloads(config))), _core(config)
    key = hashlib.sha256(f"{core}\n{sends}".encode()).hexdigest()
    if key not in {one.key for one in _known_of(settings, core)}:
        site, partition = settings.site, settings.partition_id
        told = summary(config), to_yaml(config)
        _note(Request(key, sends, site, partition, _now(), *told, limits=limits), core)
    return key


def _known_of(settings: NodeConfig, core: str) -> list[Request]:
    return [_read(place) for place in _folder(settings.partition_id).glob(f"{core[:16]}-*.json")]


def _limits(config: RunConfig, settings: NodeConfig) -> Iterator[str]:
    """Yield why a node's policy does not allow a job; nothing where it does or there is none."""
    if settings.policy is None:
        return
    try:
        policy = _policy(settings)
    except ConfigError as error:
        _log.warning("%s", error)
        yield error.outside
        return
    evaluation = config.evaluation
    asked = Asked(
        strategy=config.strategy.name,
        payloads=payloads(config),
        cohort=cohort(config),
        eps=config.privacy.epsilon,
        perplexities=evaluation.local_only or evaluation.federated,
    )
    yield from policy.limits(asked, datetime.now(UTC).date())
    most = policy.bytes_per_day
    if most is None:
        return
    if settings.ledger is None:
        yield "`mb-per-day` needs `ledger` in the node's --node-config, which counts."
    elif (sent := sent_in_a_day(Path(settings.ledger).expanduser())) >= most:
        yield f"`mb-per-day` is {policy.mb_per_day:g}, {sent:,} bytes left within 24 hours."


def _policy(settings: NodeConfig) -> Policy:
    """Return a node's policy, whose signature holds."""
    policy = Policy.read(Path(str(settings.policy)).expanduser())
    if settings.operator_key is not None:
        key = PublicKey.parse(settings.operator_key, "`operator-key`")
    else:
        key = SigningKey.read(Path(str(settings.signing_key)).expanduser()).public
    policy.verify(key)
    return policy


def _core(config: RunConfig) -> str:
    """Return the hash of what does not change while a job runs."""
    parts = [
        config.model,
        config.data,
        config.pruner,
        config.schedule,
        config.strategy,
        config.evaluation,
        config.privacy,
        config.reconstruct,
    ]
    told = [part.model_dump_json() for part in parts]
    return hashlib.sha256(
        "\n".join([source_digest(), str(config.seed), *told]).encode()
    ).hexdigest()


def summary(config: RunConfig) -> tuple[str, ...]:
    """Return in plain sentences what would leave a node."""
    words, pruner = get_method(config.strategy.name).words, config.pruner
    found = [
        f"Strategy {words.label}: each client sends {words.sends}.",
        words.tells,
        f"It asks for {', '.join(sorted(payloads(config)))}, of "
        f"{pruner.num_calibration_samples} samples of {pruner.seq_len} tokens.",
        f"The run goes on with {config.strategy.min_clients} clients or more.",
    ]
    privacy = config.privacy
    if privacy.secure:
        found.append(
            f"Answers are under masks: the server sees sums over {privacy.min_cohort} clients or "
            "more."
        )
    if privacy.epsilon is not None:
        found.append(f"Noise in them guarantees eps {privacy.epsilon:g} for each sample.")
    if config.evaluation.local_only or config.evaluation.federated:
        found.append("Perplexities that the node measures leave it, too.")
    found.append("Name, counts of samples and tokens, times, memory, versions and hashes as well.")
    return tuple(found)


def requests() -> list[Request]:
    """Return the jobs that nodes of this machine and user were asked for, oldest first."""
    return [request for _, request in _known()]


def approve(prefix: str) -> list[Request]:
    """Approve a job on every node of this machine that was asked, and return what is now approved.

    Raises ConfigError if no job's key begins with ``prefix``, six characters or more, or several
    do.
    """
    found = [one for one in requests() if one.key.startswith(prefix)]
    keys = {one.key for one in found}
    if len(prefix) < _LEAST_PREFIX or len(keys) != 1:
        waiting = ", ".join(sorted({one.key[:12] for one in requests() if not one.approved}))
        raise ConfigError(
            f"JOB must be the first {_LEAST_PREFIX} or more characters of one job's key, got "
            f"'{prefix}', which {len(keys)} have. Waiting: {waiting or 'none'}."
        )
    done = []
    for place, one in _known():
        if one.key in keys:
            now = replace(one, approved=one.approved or _now())
            _write(place, now)
            done.append(now)
    return done


def _known() -> list[tuple[Path, Request]]:
    """Return all requests of nodes of this machine and user with their files, oldest first."""
    places = (home() / "nodes" / "approvals").glob("partition-*/*.json")
    found = [(place, _read(place)) for place in places]
    return sorted(found, key=lambda one: (one[1].asked, one[1].key, one[1].partition_id))


def _note(request: Request, core: str) -> None:
    """Keep a new request for the operator, unless far too many wait already."""
    folder = _folder(request.partition_id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if len(list(folder.glob("*.json"))) < _MOST_WAITING:
        _write(folder / f"{core[:16]}-{request.key}.json", request)


def _folder(partition_id: int) -> Path:
    return home() / "nodes" / "approvals" / f"partition-{partition_id:05d}"


def _now() -> str:
    # Two jobs that were asked for within a second have an order, too.
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _shown(when: str) -> str:
    """Return a time without parts of a second."""
    return f"{when[:19]}Z"


def _write(place: Path, request: Request) -> None:
    replace_file(place, json.dumps(asdict(request), indent=2).encode() + b"\n", mode=0o600)


def _read(place: Path) -> Request:
    try:
        request = TypeAdapter(Request).validate_json(place.read_bytes())
    except ValueError as error:
        raise _damaged(place) from error
    if not place.stem.endswith(f"-{request.key}"):
        raise _damaged(place)
    return request


def _damaged(place: Path) -> ConfigError:
    return ConfigError(
        f"'{place}' is damaged. Delete it: the node will note the job again.",
        outside="What this node keeps of approvals is damaged; its own log says where.",
    )


def told(found: Sequence[Request]) -> list[str]:
    """Return lines about jobs for their operator, each job once."""
    lines: list[str] = []
    for key in dict.fromkeys(one.key for one in found):
        same = [one for one in found if one.key == key]
        sites = ", ".join(one.site or f"partition {one.partition_id}" for one in same)
        state = f"approved {_shown(same[0].approved)}" if same[0].approved else "waiting"
        lines += [f"{key[:12]}  asked {_shown(same[0].asked)} of {sites}: {state}"]
        lines += [f"  {sentence}" for sentence in same[0].summary]
        lines += [f"  Beyond the standing policy: {sentence}" for sentence in same[0].limits]
    return lines
