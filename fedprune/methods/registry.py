"""The federated methods by name: ours, one package each, and those of installed packages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from fedprune import methods
from fedprune.config import RunConfig
from fedprune.errors import ConfigError
from fedprune.methods.exchange import BlockExchange
from fedprune.methods.noisy import with_noise
from fedprune.methods.public_model import PublicModel
from fedprune.methods.reconstruction import ReconstructExchange
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.methods.survey import SurveyExchange, survey_for
from fedprune.models.changes import Changes
from fedprune.models.loading import LoadedModel
from fedprune.models.reshape import Reshape
from fedprune.plugins import METHODS, load_plugin, plugin_names
from fedprune.results.words import Words


class Participant(Protocol):
    """A client as it introduced itself, as far as blocks are assigned by it."""

    @property
    def partition_id(self) -> int:
        """Which share of the data it holds."""

    @property
    def name(self) -> str:
        """How results call it."""

    @property
    def megaflops(self) -> int:
        """Its measured speed, million operations a second; 0 if it was not asked for."""

    @property
    def free_bytes(self) -> int:
        """Free memory; 0 if nobody knows."""

    @property
    def layer_permille(self) -> int:
        """The share of blocks that its operator lets it prune, in thousandths; 0: all."""


@dataclass(frozen=True)
class Assignment:
    """Who works on which blocks in a round."""

    # partition -> the blocks that its client works on, ascending
    blocks: Mapping[int, tuple[int, ...]]
    weights: Mapping[int, int]  # partition -> how often it counts, beside `strategy.client_weights`
    summary: str = ""  # a line for the log
    # what the results tell of it: name -> plain JSON value, one a round
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """What becomes of a model by statistics of the dense one."""

    # block -> linear -> what becomes of it; asked for block by block. What is not named stays.
    changes: Changes = field(default_factory=dict)
    # which units remain, where the model becomes smaller; it is done after the changes
    reshape: Reshape | None = None
    # what the results tell of it; plain JSON values
    figures: Mapping[str, object] = field(default_factory=dict)
    # what went, in a clause for tables, report and card; "" where nothing but weights did
    summary: str = ""
    header: tuple[str, ...] = ()  # names of the columns of :attr:`rows`, the first one of words
    # what went where, a line a block; nothing in it is of a single client
    rows: tuple[tuple[str, ...], ...] = ()


class Method(ABC):
    """A federated algorithm: which exchange it holds about a block, and its words."""

    name: str  # `strategy.name`
    words: Words  # for reports
    # what :func:`fedprune.aggregate` calls it, which has changes instead of a federation: each way
    # with the overrides that it stands for. Empty where clients send no changes.
    ways: Mapping[str, Sequence[str]] = {}
    # whether a run whose exchange does not prune ends with the model that :meth:`solve` makes; else
    # with the statistics, of which models are made by `fedprune solve`
    solves_at_once: bool = True
    # the overrides with which its answers can have noise (`privacy.epsilon`), "" where it takes
    # none; None where they never can
    with_noise: str | None = None

    @abstractmethod
    def exchange(self, config: RunConfig) -> BlockExchange:
        """Return the exchange that is held about every block.

        One that prunes makes the model block by block as answers come. One that does not
        (:class:`fedprune.methods.collection.Collection`) leaves statistics, which :meth:`solve`
        makes a model of.
        """

    def survey(self, config: RunConfig) -> SurveyExchange | None:
        """Return the exchange that is held before, about the dense model: `allocation`'s."""
        return survey_for(config) if self.exchange(config).prunes else None

    def check_model(self, config: RunConfig, loaded: LoadedModel) -> None:  # noqa: B027
        """Refuse a model of which the method could not make what it is to make.

        Asked on the server before anybody else is asked anything; by default no model is refused.

        Parameters
        ----------
        config : RunConfig
            The method's own keys, and what it follows of others.
        loaded : LoadedModel
            The dense model.

        Raises
        ------
        ConfigError or ModelError
            Saying why not, and what to do.
        """

    def settled(self, config: RunConfig, model: PublicModel) -> RunConfig:
        """Return the configuration with what follows from the model's shapes; by default as it is.

        Asked on the server before anybody else is asked anything; clients hear the answer.

        Raises
        ------
        ConfigError
            If what is asked for cannot be had of this model.
        """
        return config

    def solve(
        self, config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder
    ) -> Solution:
        """Return what becomes of a model by collected statistics; called without any client.

        Parameters
        ----------
        config : RunConfig
            The method's own keys, and what it follows of others.
        loaded : LoadedModel
            The dense model.
        statistics : StatisticsFolder
            Of this model; :meth:`StatisticsFolder.require` refuses what was not collected.

        Raises
        ------
        ConfigError
            If the method makes nothing of statistics, or not of these.
        """
        raise ConfigError(
            f"strategy={self.name} makes no model of collected statistics: it prunes with its "
            "clients (`fedprune run`). Leave `strategy` out to prune with `pruner`."
        )

    def assign(
        self, config: RunConfig, model: PublicModel, clients: Sequence[Participant], number: int
    ) -> Assignment:
        """Return who works on which blocks in round ``number``, from 1; by default all on all.

        Clients are in the order of their partitions. A run that goes on in the middle of a round
        asks again, with the same clients.

        Raises
        ------
        ConfigError
            If the clients cannot do what is asked.
        """
        every = tuple(range(model.num_blocks))
        partitions = [client.partition_id for client in clients]
        return Assignment(dict.fromkeys(partitions, every), dict.fromkeys(partitions, 1))


def method_names() -> tuple[str, ...]:
    """Return the names of all methods that can be asked for here."""
    return tuple(dict.fromkeys((*_OURS, *plugin_names(METHODS))))


def get_method(name: str) -> Method:
    """Return a method by name.

    Raises
    ------
    ConfigError
        If no installed package has it, or what it has is no method.
    """
    package = _OURS.get(name)
    if package is None:
        package = getattr(load_plugin(METHODS, name), "__name__", "")
    try:
        found = import_module(f"{package}.method").METHOD
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The plugin '{name}' has no `method.METHOD`: {error}.") from error
    if not isinstance(found, Method) or found.name != name:
        raise ConfigError(
            f"`method.METHOD` of '{package}' must be a fedprune.methods.registry.Method of the "
            f"name '{name}', got {found!r}."
        )
    return found


def exchanges(config: RunConfig) -> dict[str, BlockExchange]:
    """Return the exchanges about blocks that a configuration asks for, by their names."""
    method = get_method(config.strategy.name)
    found = [main_exchange(config)]
    survey = method.survey(config)
    if survey is not None:
        if config.privacy.epsilon is not None:
            raise ConfigError(
                "`privacy.epsilon` must be null where clients are asked about the dense model "
                f"first, as with allocation={config.allocation.name}, got "
                f"{config.privacy.epsilon:g}: what follows from their answers would have to be "
                "part of the same promise. Set allocation=uniform, or allocation=per_block with "
                "the sparsities of a run on public text."
            )
        found.append(survey)
    if config.reconstruct.name != "none" and found[0].prunes:
        found.append(ReconstructExchange(config))
    return {exchange.name: exchange for exchange in found}


def main_exchange(config: RunConfig) -> BlockExchange:
    """Return the exchange that is held about every block, with noise where `privacy` wants it.

    Raises
    ------
    ConfigError
        If it cannot have noise (:func:`fedprune.methods.noisy.with_noise`).
    """
    method = get_method(config.strategy.name)
    exchange, way = method.exchange(config), ""
    if config.privacy.epsilon is not None and not exchange.summed:
        way = _way_to_noise(method)
    return with_noise(exchange, way)


def _way_to_noise(method: Method) -> str:
    """Return what to set where a method's answers can have no noise as they are."""
    known = {name: get_method(name).with_noise for name in _OURS}
    every = "; ".join(
        f"strategy={name} {overrides}".rstrip()
        for name, overrides in known.items()
        if overrides is not None
    )
    if method.with_noise:
        return f"Set {method.with_noise}, or privacy.epsilon=null."
    return f"With noise there are: {every}. Choose one of these, or set privacy.epsilon=null."


_OURS = {
    module.name: f"{methods.__name__}.{module.name}"
    for module in iter_modules(methods.__path__)
    if module.ispkg
}
