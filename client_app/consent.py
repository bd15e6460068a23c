"""Which jobs a node's operator agrees to; every request is held against it, not only the first."""

from collections.abc import Iterator
from dataclasses import replace

from client_app.settings import Settings
from fedprune.config import RunConfig
from fedprune.errors import ConfigError
from fedprune.records import FORMS, MASKS, MOMENTS, SUMS, WEIGHTS

_NAMES = {MASKS: "masks", WEIGHTS: "weights", SUMS: "sums", MOMENTS: "moments"}
_WHERE = "in the node's --node-config"


def agreed(settings: Settings, config: RunConfig, survey: bool = False) -> RunConfig:
    """Return a job's configuration as this node follows it.

    Parameters
    ----------
    settings : Settings
        The operator's.
    config : RunConfig
        What the server asks for.
    survey : bool
        Whether the request is for a survey, which a job without one could ask for as well.

    Raises
    ------
    ConfigError
        If the settings are wrong, or the operator does not agree to the job; it carries every
        reason.
    """
    problems = [*settings.problems, *_objections(settings, config, survey)]
    if problems:
        raise ConfigError(" ".join(problems))
    if settings.device is None:
        return config
    return replace(config, pruner=replace(config.pruner, device=settings.device))


def payloads(config: RunConfig, survey: bool = False) -> set[str]:
    """Return what a job asks its nodes to send; parameters as :func:`agreed`."""
    found = {_NAMES[FORMS[config.strategy.name]]}
    return found | {"sums"} if survey or config.allocation.name == "owl" else found


def _objections(settings: Settings, config: RunConfig, survey: bool) -> Iterator[str]:
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
    forbidden = sorted(payloads(config, survey) - set(settings.may_send))
    if forbidden:
        yield (
            f"`may-send` {_WHERE} is '{','.join(settings.may_send)}', this job asks for "
            f"{' and '.join(forbidden)} (`strategy.name` '{config.strategy.name}', "
            f"`allocation.name` '{config.allocation.name}'). Choose another strategy, or ask its "
            "operator."
        )
