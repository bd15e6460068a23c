"""Which node this is: its partition, its operator's settings, its keys, its scratch folder."""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import torch
from flwr.app import Context, Message

from client_app.node_config import NodeConfig
from fedprune.config import RunConfig, replace
from fedprune.config.suggest import show
from fedprune.disk import home
from fedprune.errors import ConfigError, ReplyRefusedError
from fedprune.logs import note
from fedprune.memory import free_memory
from fedprune.methods.registry import exchanges
from fedprune.privacy.roster import Roster
from fedprune.privacy.signing import SigningKey


@dataclass(frozen=True)
class Identity:
    """A site's key and roster."""

    key: SigningKey | None  # what it signs with; None where its operator named none
    # the sites whose keys it trusts, verified; None where its operator named none, then it can
    # trust no key of another site
    roster: Roster | None

    @classmethod
    def of(cls, settings: NodeConfig) -> Self:
        """Read what a node's configuration names.

        Raises ConfigError if a file is unfit, the roster does not hold, this site is not in it or
        is there under another name, or has not signed it.
        """
        key = None
        if settings.signing_key is not None:
            key = SigningKey.read(Path(settings.signing_key).expanduser())
        if settings.roster is None or key is None:
            return cls(key, None)
        roster = Roster.read(Path(settings.roster).expanduser())
        roster.verify(key.public)
        name = roster.site_of(key.public)
        if settings.site and settings.site != name:
            raise ConfigError(
                f"`site` in the node's --node-config is {show(settings.site)}, the roster calls "
                f"this site's key {show(name)}. Give both the same name."
            )
        return cls(key, roster)


_log = logging.getLogger("flwr")
_JOB = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class NodeContext:
    """A node's identity in one job."""

    settings: NodeConfig  # what its operator says in ``--node-config``
    scratch: Path  # its folder for this job; removed when the server says that the job is over

    @classmethod
    def of(cls, message: Message, context: Context) -> "NodeContext":
        """Read the node's configuration, and the job that a message is of: its group.

        Flower's number of the run does not tell: a run that goes on after a kill has another.

        Raises ConfigError if ``partition-id`` is missing or not a whole number of at least 0.
        Raises ReplyRefusedError if the message names no job.
        """
        job = message.metadata.group_id
        if not _JOB.fullmatch(job):
            raise ReplyRefusedError("a request's group must be its job, 32 hexadecimal digits.")
        settings = NodeConfig.read(dict(context.node_config))
        site, partition = settings.site, settings.partition_id
        note(node=f"'{site}' (partition {partition})" if site else f"partition {partition}")
        folder = home() / "nodes" / f"job-{job}" / f"partition-{partition:05d}"
        return cls(settings, folder)

    @property
    def job(self) -> str:
        """The run's key, 32 hexadecimal digits, which stays the same when it goes on."""
        return self.scratch.parent.name.removeprefix("job-")


_WHERE = "in the node's --node-config"


def agreed(settings: NodeConfig, config: RunConfig) -> RunConfig:
    """Return a job's configuration as this node follows it, or raise every reason why not."""
    problems = [*settings.problems, *_objections(settings, config)]
    if problems:
        raise ConfigError(" ".join(problems))
    if settings.device is None:
        return config
    return replace(config, pruner=replace(config.pruner, device=settings.device))


def payloads(config: RunConfig) -> set[str]:
    """Return what a job asks its nodes to send."""
    return {exchange.payload for exchange in exchanges(config).values()}


def cohort(config: RunConfig) -> int:
    """Return over how few clients' sum an answer may be opened; 1: the server sees each."""
    return config.privacy.min_cohort if config.privacy.secure else 1


def _objections(settings: NodeConfig, config: RunConfig) -> Iterator[str]:
    asked, seq_len = config.pruner.num_calibration_samples, config.pruner.seq_len
    samples = min(asked, settings.max_samples or asked)
    if samples < settings.min_samples:
        yield (
            f"`min-samples` {_WHERE} is {settings.min_samples}, this job calibrates on {samples}: "
            "the fewer samples, the more their sums tell of each. Raise "
            f"`pruner.num_calibration_samples` to {settings.min_samples} or more."
        )
    if samples * seq_len < settings.min_tokens:
        yield (
            f"`min-tokens` {_WHERE} is {settings.min_tokens}, this job calibrates on "
            f"{samples} samples of {seq_len} tokens, {samples * seq_len}. Raise "
            "`pruner.num_calibration_samples` or `pruner.seq_len`."
        )
    yield from _small_cohort(settings, config)
    if settings.data_path is not None and config.data.source == "files":
        yield (
            f"`data-path` {_WHERE} says which texts this node reads, and no others: this job names "
            "a path of its own. Set `data=node`."
        )
    forbidden = sorted(payloads(config) - set(settings.may_send))
    if forbidden:
        yield (
            f"`may-send` {_WHERE} is '{','.join(settings.may_send)}', this job asks for "
            f"{' and '.join(forbidden)} (`strategy.name` '{config.strategy.name}', "
            f"`allocation.name` '{config.allocation.name}'). Choose another strategy, or ask its "
            "operator."
        )


def _small_cohort(settings: NodeConfig, config: RunConfig) -> Iterator[str]:
    """Yield why answers of this site may not be opened over so few; a roster has its own floor."""
    try:
        roster = Identity.of(settings).roster
    except ConfigError as error:
        _log.warning("%s", error)
        yield error.outside
        return
    agreed_on = 1 if roster is None else roster.min_cohort
    least = agreed_on if settings.min_cohort is None else settings.min_cohort
    where = "in this site's roster" if settings.min_cohort is None else _WHERE
    if not config.privacy.secure and least > 1:
        yield (
            f"`min-cohort` {where} is {least}, this job shows the server each client's own answer. "
            f"Set privacy.secure=true privacy.min_cohort={max(least, agreed_on)}, or ask its "
            "operator, whom `min-cohort=1` lets it take part."
        )
    elif config.privacy.secure and cohort(config) < max(least, agreed_on):
        yield (
            f"`min-cohort` {where if least >= agreed_on else 'of its roster'} is "
            f"{max(least, agreed_on)}, this job opens sums over {cohort(config)} clients. Raise "
            "`privacy.min_cohort`."
        )


_SIZE = 768
_SECONDS = 0.05


def memory_bytes(device: str) -> int:
    """Return the memory of a device, 0 if nobody knows."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def free_bytes(device: str) -> int:
    """Return the memory of a device that is free now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def megaflops(device: str) -> int:
    """Return the measured speed of float32 matrix products, million operations a second."""
    if not device:
        return 0
    matrix = torch.ones(_SIZE, _SIZE, device=device)
    matrix @ matrix  # the first one also loads libraries
    _wait(device)
    started, products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < _SECONDS:
        matrix @ matrix
        _wait(device)
        products += 1
    return round(products * 2 * _SIZE**3 / seconds / 1e6)


def use_threads(threads: int | None) -> None:
    """Compute with so many of the processor's threads; None leaves it to the process."""
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
