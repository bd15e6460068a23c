"""The jobs of a sweep: the values of each key, folders, baselines, and what is done already."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fedprune.cli.solve import solve_config
from fedprune.config import RunConfig, config_from_overrides, from_yaml, replace
from fedprune.config.compose import sweep_of
from fedprune.config.keys import all_keys, flatten
from fedprune.config.overrides import group_options
from fedprune.config.schema import SECTIONS
from fedprune.config.suggest import did_you_mean, show, spelled
from fedprune.errors import ConfigError
from fedprune.results.environment import source_digest
from fedprune.results.sweep import SEED, SPARSITY, Axes

_KEYS = ("experiment", "grid", "linked", "seeds", "table")
_LONGEST_NAME = 40
_FROM = "from"

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """A set of jobs."""

    name: str
    title: str  # what a person calls it
    fixed: tuple[str, ...]  # overrides that all jobs share
    # key -> its values; every combination is a job. The key `seed` comes last.
    grid: Mapping[str, tuple[str, ...]]
    # settings of keys that change together, not always the same keys; each is combined with the
    # whole grid. One empty mapping if there are none.
    linked: tuple[Settings, ...]
    axes: Axes  # rows and columns of the table
    # the statistics folder that all models are made of (``from=FOLDER``), "" to ask clients
    statistics: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that differ between jobs, in the order of the table."""
        return (*_linked_keys(self.linked), *self.grid)

    def points(self) -> list[Settings]:
        """Return the settings of every job, seeds side by side."""
        keys = [key for key in self.grid if key != SEED]
        seeds = self.grid.get(SEED)
        found: list[Settings] = []
        for link in self.linked:
            for values in itertools.product(*(self.grid[key] for key in keys)):
                settings = {**link, **dict(zip(keys, values, strict=True))}
                found += [{**settings, SEED: seed} for seed in seeds] if seeds else [settings]
        return found


def read_sweep(arguments: Sequence[str]) -> Sweep:
    """Return the sweep that a command asks for.

    `arguments`: a name first, or ``experiment=NAME``, for what ``conf/experiment/NAME.yaml`` says
    under `sweep`; or the path of a file with the same keys and `experiment`. Then overrides: one
    with several values, ``key=a,b``, is swept, one with a single value holds for all jobs, and both
    replace what the file says. With ``from=FOLDER`` models are made of the statistics in that
    folder, without any client. All problems are told at once, before anything is composed.
    """
    file, found, overrides = _told(list(arguments))
    problems: list[str] = []
    fixed, grid, linked = _parts(found, problems)
    statistics = ""
    for override in overrides:
        key, equals, value = override.partition("=")
        if key == _FROM and equals:
            statistics = _statistics(value, problems)
        elif not equals:
            problems.append(f"{show(override)} is not an override. Write key=value.")
        elif any(key in link for link in linked):
            problems.append(f"`{key}` is set by `linked` in '{file}' and cannot be overridden.")
        else:
            grid.pop(key, None)
            values = _values(override)
            if values:
                grid[key] = values
            else:
                fixed.append(override)
    if SEED in grid:
        grid[SEED] = grid.pop(SEED)
    axes = _axes(found.get("table"), grid, linked, problems)
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError("\n".join(["The sweep has problems:", *(f"- {p}" for p in problems)]))
    swept = (*_linked_keys(linked), *grid)
    if not swept:
        raise ConfigError("A sweep needs a key with several values, for example sparsity=0.5,0.6.")
    title = file or ", ".join(key for key in swept if key != SEED) or SEED
    name = _name(file, overrides, swept)
    return Sweep(name, title, tuple(fixed), grid, tuple(linked), axes, statistics)


def _statistics(value: str, problems: list[str]) -> str:
    """Return the statistics folder in ``from=FOLDER``, absolute."""
    folder = Path(_unquoted(value)).expanduser().absolute()
    if not value or not folder.is_dir():
        problems.append(
            f"`{_FROM}` must be one statistics folder, or the run that made it, got {show(value)}."
        )
    return str(folder)


def sweep_names() -> list[str]:
    """Return the names of the experiments that say what a sweep makes of them."""
    return [name for name in group_options("experiment") if sweep_of(name) is not None]


def _told(arguments: list[str]) -> tuple[str, Mapping[str, object], list[str]]:
    """Return the name and content of a file that describes the sweep, and the other arguments."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        rest = [other for other in arguments if other is not argument]
        if not equals and key.endswith(".yaml"):
            path = Path(key).expanduser()
            return path.stem, _read(path), rest
        name = value if key == "experiment" else key
        if equals and key != "experiment":
            continue
        found = sweep_of(name) if name in group_options("experiment") else None
        if isinstance(found, Mapping):
            return name, {"experiment": name, **found}, rest
        if not equals:
            names = ", ".join(map(repr, sweep_names())) or "none"
            raise ConfigError(
                f"{show(key)} is no sweep: it is neither an experiment with one nor a .yaml file. "
                f"Known sweeps: {names}.{did_you_mean(key, sweep_names())}"
            )
    return "", {}, arguments


def _read(file: Path) -> Mapping[str, object]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"'{file}' is no sweep: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{file}' must be YAML: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"'{file}' must be a mapping with the keys {', '.join(_KEYS)}.")
    return found


def _parts(
    found: Mapping[str, object], problems: list[str]
) -> tuple[list[str], dict[str, tuple[str, ...]], list[Settings]]:
    """Return fixed overrides, grid and linked settings of a file's content."""
    for key in found:
        if key not in _KEYS:
            problems.append(f"`{key}` is not a key of a sweep.{did_you_mean(str(key), _KEYS)}")
    fixed = [f"experiment={found['experiment']}"] if found.get("experiment") else []
    grid: dict[str, tuple[str, ...]] = {}
    axes = found.get("grid") or {}
    if not isinstance(axes, Mapping):
        problems.append("`grid` must be a mapping of keys to lists of values.")
        axes = {}
    for key, values in {**axes, **({SEED: found["seeds"]} if "seeds" in found else {})}.items():
        plain = isinstance(values, list) and not any(isinstance(v, list | dict) for v in values)
        if isinstance(values, list) and values and plain:
            grid[str(key)] = tuple(map(spelled, values))
        else:
            name = "seeds" if key == SEED else f"grid.{key}"
            problems.append(f"`{name}` must be a list of values, got {show(values)}.")
    linked = found.get("linked") or [{}]
    links: list[Settings] = []
    for link in linked if isinstance(linked, list) else [linked]:
        if isinstance(linked, list) and isinstance(link, Mapping):
            links.append({str(key): spelled(value) for key, value in link.items()})
        else:
            problems.append(f"`linked` must be a list of mappings, got {show(link)}.")
    links = links or [{}]
    if any(set(link) & set(grid) for link in links):
        problems.append("`linked` must set no key that `grid` sets.")
    return fixed, grid, links


def _axes(
    table: object,
    grid: Mapping[str, tuple[str, ...]],
    linked: Sequence[Settings],
    problems: list[str],
) -> Axes:
    """Return rows and columns: those asked for, and every other swept key among the rows."""
    table = table or {}
    swept = [*_linked_keys(linked), *(key for key in grid if key != SEED)]
    if not isinstance(table, Mapping) or set(table) - {"rows", "columns"}:
        problems.append("`table` must be a mapping with the keys `rows` and `columns`.")
        table = {}
    chosen: dict[str, list[str]] = {}
    for name in ("rows", "columns"):
        keys = table.get(name) or []
        chosen[name] = [str(key) for key in keys] if isinstance(keys, list) else []
        for key in chosen[name]:
            # A key that the command fixed to one value needs no row or column any more.
            if key not in (*swept, *all_keys(), *SECTIONS):
                problems.append(f"`table.{name}`: {show(key)} is not swept.")
        chosen[name] = [key for key in chosen[name] if key in swept]
    rows, columns = chosen["rows"], chosen["columns"]
    if not columns and SPARSITY in swept and SPARSITY not in rows:
        columns = [SPARSITY]
    rows += [key for key in grid if key not in (*rows, *columns, SEED)]
    for key in _linked_keys(linked):
        # The others of a link follow from those that tell its entries apart.
        told = {tuple(link.get(k) for k in (*rows, *columns)) for link in linked}
        if len(told) < len(linked) and key not in (*rows, *columns):
            rows.append(key)
    return Axes(tuple(rows), tuple(columns))


def _linked_keys(linked: Sequence[Settings]) -> list[str]:
    return list(dict.fromkeys(key for link in linked for key in link))


def _values(override: str) -> tuple[str, ...]:
    """Return the values of an override that Hydra would sweep over, none for any other."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.is_sweep_override():
            return ()
        return tuple(map(_unquoted, parsed.sweep_string_iterator()))
    except (HydraException, NotImplementedError):
        return ()


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _name(file: str, overrides: Sequence[str], swept: Sequence[str]) -> str:
    """Return a name that the same command always gets, and an extended list of values too."""
    fixed = [text for text in overrides if text.partition("=")[0] not in swept]
    fixed = [text for text in fixed if not text.startswith("output_dir=")]
    if file and not fixed:
        return file
    short = file or "-".join(key.rpartition(".")[2] for key in swept)
    digest = hashlib.sha256("\0".join(sorted([*fixed, *swept])).encode()).hexdigest()
    return f"{short[:_LONGEST_NAME]}-{digest[:8]}"


_UNSAFE = re.compile(r"[^A-Za-z0-9._=,:+-]")
_LONGEST_FOLDER = 150
# What a client would do alone, one with all samples, or none with public text, knows nothing of
# the server: of its settings only those count that choose who takes part.
_SERVER = ("strategy.", "schedule.", "federation.")
_WHO_TAKES_PART = ("strategy.fraction", "strategy.min_clients", "federation.num_clients")
_BASELINES = ("evaluation.local_only", "evaluation.centralized", "evaluation.no_client")


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep."""

    settings: Settings  # swept key -> value
    config: RunConfig
    folder: Path
    baseline: int  # place of the job that measures its baselines; maybe its own
    # the statistics folder that its model is made of, "" where clients are asked
    statistics: str = ""

    @property
    def label(self) -> str:
        """What a person calls it."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


def plan_sweep(sweep: Sweep, folder: Path) -> list[SweepJob]:
    """Return the jobs of a sweep, all checked.

    Baselines are measured once for all jobs that share them, if possible in one whose clients
    prune by themselves from the first block to the last: in an iterative one, for example, they
    see the inputs of a globally pruned model.

    Raises ConfigError: a job's configuration is wrong; the message names the job.
    """
    points = sweep.points()
    compose, statistics = _composer(sweep.statistics)
    configs = [_config(sweep, settings, compose) for settings in points]
    first = _first_of_each(configs)
    jobs = []
    for place, (settings, config) in enumerate(zip(points, configs, strict=True)):
        path = folder / _folder_name(settings)
        carrier = first[baseline_key(config)]
        if place != carrier:
            evaluation = replace(
                config.evaluation, local_only=False, centralized=False, no_client=False
            )
            config = replace(config, evaluation=evaluation)
        # The folder is this machine's, a connection's results are not.
        output_dir = "" if config.federation.connection else str(path)
        config = replace(config, output_dir=output_dir)
        jobs.append(SweepJob(settings, config, path, carrier, statistics))
    return jobs


def baseline_key(config: RunConfig) -> tuple[object, ...]:
    """Return what the baselines of a run depend on."""
    return tuple(
        value
        for key, value in flatten(config).items()
        if key != "output_dir" and (key in _WHO_TAKES_PART or not key.startswith(_SERVER))
    )


def finished(job: SweepJob) -> dict[str, Any] | None:
    """Return a job's results if an earlier sweep has left them.

    None also if they lack baselines that this sweep needs from the job.

    Raises ConfigError: the folder holds the results of other settings.
    """
    try:
        text = (job.folder / "results.json").read_text(encoding="utf-8")
        done = from_yaml((job.folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ConfigError:
        raise ConfigError(
            f"'{job.folder}' holds a run whose configuration another version of fedprune wrote. "
            "Delete it or choose another `output_dir`."
        ) from None
    there, wanted = _decisive(done), _decisive(job.config)
    baselines = [(there.pop(key), wanted.pop(key)) for key in _BASELINES]
    different = [key for key in wanted if there.get(key) != wanted[key]]
    if different:
        raise ConfigError(
            f"'{job.folder}' holds a run with another `{different[0]}` "
            f"({there.get(different[0])}, not {wanted[different[0]]}). Delete it or choose another "
            "`output_dir`."
        )
    if any(asked and not had for had, asked in baselines):
        return None
    try:
        results: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError):
        raise ConfigError(
            f"`results.json` in '{job.folder}' is damaged. Delete it or choose another "
            "`output_dir`."
        ) from None
    before = results.get("statistics", {}).get("folder", "")
    if job.statistics and before != job.statistics:
        raise ConfigError(
            f"'{job.folder}' holds a model of other statistics ('{before}'). Delete it or choose "
            "another `output_dir`."
        )
    return results


def cut_off(job: SweepJob) -> bool:
    """Return whether a job was stopped in the middle and can go on from there.

    One that failed starts anew: whatever it failed of may be in what it has left. So does one
    that was begun by other sources of fedprune, which nobody but those can continue.
    """
    if any((job.folder / name).exists() for name in ("results.json", "failure.json")):
        return False
    try:
        begun = from_yaml((job.folder / "config.yaml").read_text(encoding="utf-8"))
        state = json.loads((job.folder / "state" / "run.json").read_text(encoding="utf-8"))
        code = state["identity"]["code"]
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return False
    return code == source_digest() and _decisive(begun) == _decisive(job.config)


def _decisive(config: RunConfig) -> dict[str, object]:
    """Return the values that decide about results: not where or how the run was carried out."""
    return {
        key: value
        for key, value in flatten(config).items()
        if key != "output_dir" and (key in _WHO_TAKES_PART or not key.startswith("federation."))
    }


Compose = Callable[[Sequence[str]], RunConfig]


def _composer(statistics: str) -> tuple[Compose, str]:
    """Return what composes a job's configuration, and the folder of statistics behind it if any."""
    if not statistics:
        return config_from_overrides, ""
    from fedprune.methods.statistics_folder import StatisticsFolder  # loads torch

    found = StatisticsFolder.open(statistics)
    return partial(solve_config, found), str(found.path)


def _config(sweep: Sweep, settings: Settings, compose: Compose) -> RunConfig:
    given = {text.partition("=")[0] for text in (*sweep.fixed, *settings)}
    local = not given & {"federation.backend", "federation.connection"}
    usual = ["federation.backend=inline"] if local and not sweep.statistics else []
    overrides = [*usual, *sweep.fixed, *(f"{key}={value}" for key, value in settings.items())]
    try:
        return compose(overrides)
    except ConfigError as error:
        label = " ".join(overrides)
        raise ConfigError(f"The job {label} cannot run. {error}") from None


def _first_of_each(configs: Sequence[RunConfig]) -> dict[tuple[object, ...], int]:
    """Return baseline key -> place of the job that measures them."""
    first: dict[tuple[object, ...], int] = {}
    for place, config in enumerate(configs):
        key = baseline_key(config)
        if key not in first or _unfit(config) < _unfit(configs[first[key]]):
            first[key] = place
    return first


def _unfit(config: RunConfig) -> tuple[bool, ...]:
    """Return why a run's clients know less of what each would do alone, the worst reason first."""
    strategy, schedule = config.strategy, config.schedule
    return (
        strategy.pools,  # its clients send statistics and prune nothing themselves
        schedule.name != "one_shot",
        schedule.prefix != "local",
        strategy.rounds > 1,
        strategy.layer_fraction < 1,
    )


def _folder_name(settings: Settings) -> str:
    plain = ",".join(f"{key}={value}" for key, value in settings.items())
    name = _UNSAFE.sub("-", plain)
    if name == plain and len(name) <= _LONGEST_FOLDER:
        return name
    # What was cut off or replaced still tells two jobs apart.
    return f"{name[:_LONGEST_FOLDER]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
