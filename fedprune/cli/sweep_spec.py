"""What a sweep is: the values of each key, from a file in ``conf/sweep`` or from the command."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fedprune.config.overrides import CONF
from fedprune.config.schema import LEAVES, SECTIONS
from fedprune.config.suggest import did_you_mean, show
from fedprune.errors import ConfigError
from fedprune.reporting.sweep import SEED, SPARSITY, Axes

_FOLDER = CONF / "sweep"
_KEYS = ("experiment", "grid", "linked", "seeds", "table")
_LONGEST_NAME = 40

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """A set of jobs.

    Attributes
    ----------
    name : str
        Names its folder.
    title : str
        What a person calls it.
    fixed : tuple of str
        Overrides that all jobs share.
    grid : Mapping
        Key -> its values; every combination is a job. The key `seed` comes last.
    linked : tuple of Mapping
        Settings of keys that change together; each is combined with the whole grid. One empty
        mapping if there are none.
    axes : Axes
        Rows and columns of the table.
    """

    name: str
    title: str
    fixed: tuple[str, ...]
    grid: Mapping[str, tuple[str, ...]]
    linked: tuple[Settings, ...]
    axes: Axes

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

    Parameters
    ----------
    arguments : sequence of str
        A name first, or ``experiment=NAME``, for ``conf/sweep/NAME.yaml``; or the path of such a
        file. Then overrides: one with several values, ``key=a,b``, is swept, one with a single
        value holds for all jobs, and both replace what the file says.

    Raises
    ------
    ConfigError
        With every problem found, before anything is composed.
    """
    file, overrides = _file(list(arguments))
    found = _read(file) if file else {}
    problems: list[str] = []
    fixed, grid, linked = _parts(found, problems)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
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
    swept = (*(key for link in linked[:1] for key in link), *grid)
    if not swept:
        raise ConfigError("A sweep needs a key with several values, for example sparsity=0.5,0.6.")
    title = file.stem if file else ", ".join(key for key in swept if key != SEED) or SEED
    name = _name(file, overrides, swept)
    return Sweep(name, title, tuple(fixed), grid, tuple(linked), axes)


def sweep_names() -> list[str]:
    """Return the names of the sweeps in ``conf/sweep``."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def _file(arguments: list[str]) -> tuple[Path | None, list[str]]:
    for argument in arguments:
        key, equals, value = argument.partition("=")
        rest = [other for other in arguments if other is not argument]
        if not equals:
            path = Path(key).expanduser() if key.endswith(".yaml") else _FOLDER / f"{key}.yaml"
            if not path.is_file():
                names = ", ".join(map(repr, sweep_names())) or "none"
                raise ConfigError(
                    f"{show(key)} is no sweep: there is no file '{path}'. "
                    f"Known sweeps: {names}.{did_you_mean(key, sweep_names())}"
                )
            return path, rest
        if key == "experiment" and value in sweep_names():
            return _FOLDER / f"{value}.yaml", rest
    return None, arguments


def _read(file: Path) -> dict[str, object]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
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
        if isinstance(values, list) and values and not any(map(_nested, values)):
            grid[str(key)] = tuple(map(_text, values))
        else:
            name = "seeds" if key == SEED else f"grid.{key}"
            problems.append(f"`{name}` must be a list of values, got {show(values)}.")
    linked = found.get("linked") or [{}]
    links: list[Settings] = []
    for link in linked if isinstance(linked, list) else [linked]:
        if isinstance(linked, list) and isinstance(link, Mapping):
            links.append({str(key): _text(value) for key, value in link.items()})
        else:
            problems.append(f"`linked` must be a list of mappings, got {show(link)}.")
    links = links or [{}]
    if any(set(link) != set(links[0]) for link in links) or set(links[0]) & set(grid):
        problems.append("`linked` must set the same keys in each entry, and none that `grid` sets.")
    return fixed, grid, links


def _axes(
    table: object,
    grid: Mapping[str, tuple[str, ...]],
    linked: Sequence[Settings],
    problems: list[str],
) -> Axes:
    """Return rows and columns: those asked for, and every other swept key among the rows."""
    table = table or {}
    swept = [*linked[0], *(key for key in grid if key != SEED)]
    if not isinstance(table, Mapping) or set(table) - {"rows", "columns"}:
        problems.append("`table` must be a mapping with the keys `rows` and `columns`.")
        table = {}
    chosen: dict[str, list[str]] = {}
    for name in ("rows", "columns"):
        keys = table.get(name) or []
        chosen[name] = [str(key) for key in keys] if isinstance(keys, list) else []
        for key in chosen[name]:
            # A key that the command fixed to one value needs no row or column any more.
            if key not in (*swept, *LEAVES, *SECTIONS):
                problems.append(f"`table.{name}`: {show(key)} is not swept.")
        chosen[name] = [key for key in chosen[name] if key in swept]
    rows, columns = chosen["rows"], chosen["columns"]
    if not columns and SPARSITY in swept and SPARSITY not in rows:
        columns = [SPARSITY]
    rows += [key for key in grid if key not in (*rows, *columns, SEED)]
    for key in linked[0]:
        # The others of a link follow from those that tell its entries apart.
        told = {tuple(link[k] for k in linked[0] if k in (*rows, *columns)) for link in linked}
        if len(told) < len(linked) and key not in (*rows, *columns):
            rows.append(key)
    return Axes(tuple(rows), tuple(columns))


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


def _nested(value: object) -> bool:
    return isinstance(value, list | dict)


def _text(value: object) -> str:
    """Return a YAML value as an override spells it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(file: Path | None, overrides: Sequence[str], swept: Sequence[str]) -> str:
    """Return a name that the same command always gets, and an extended list of values too."""
    fixed = [text for text in overrides if text.partition("=")[0] not in swept]
    fixed = [text for text in fixed if not text.startswith("output_dir=")]
    if file is not None and not fixed:
        return file.stem
    short = file.stem if file else "-".join(key.rpartition(".")[2] for key in swept)
    digest = hashlib.sha256("\0".join(sorted([*fixed, *swept])).encode()).hexdigest()
    return f"{short[:_LONGEST_NAME]}-{digest[:8]}"
