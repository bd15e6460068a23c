"""What a sweep's file and command mean."""

from pathlib import Path

import pytest

from fedprune.cli.sweep_plan import read_sweep
from fedprune.errors import ConfigError
from fedprune.results.sweep import Axes

_FILE = """
experiment: demo
grid:
  strategy.group: [layer, row]
  strategy.scaling: [false, true]
seeds: [0, 1]
table: {rows: [strategy.group], columns: [strategy.scaling]}
"""
_LINKED = """
grid: {sparsity: [0.5]}
linked:
  - {federation.num_clients: 2, strategy.min_clients: 2}
  - {federation.num_clients: 4, strategy.min_clients: 4}
seeds: [0, 1]
table: {rows: [federation.num_clients]}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_lists_of_a_command_are_crossed_seeds_innermost() -> None:
    sweep = read_sweep(["seed=0,1", "sparsity=0.3,0.5", "strategy.group=layer,row", "pruner=wanda"])
    assert sweep.fixed == ("pruner=wanda",)
    expected = [
        {"sparsity": s, "strategy.group": g, "seed": seed}
        for s in ("0.3", "0.5")
        for g in ("layer", "row")
        for seed in ("0", "1")
    ]
    assert sweep.points() == expected
    assert sweep.axes == Axes(("strategy.group",), ("sparsity",))
    assert sweep.title == "sparsity, strategy.group"


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("sparsity=choice(0.3,0.5)", ("0.3", "0.5")),
        ("seed=range(0,3)", ("0", "1", "2")),
        ("pruner.pattern='2:4','4:8'", ("2:4", "4:8")),
    ],
)
def test_hydras_ways_to_write_several_values(override: str, values: tuple[str, ...]) -> None:
    (found,) = read_sweep([override]).grid.values()
    assert found == values


def test_a_quoted_comma_is_no_list() -> None:
    sweep = read_sweep(["seed=0,1", "data.path='/a,b'", "model=/my models/a=b"])
    assert list(sweep.grid) == ["seed"]
    assert sweep.fixed == ("data.path='/a,b'", "model=/my models/a=b")


def test_a_file_and_what_replaces_its_values(tmp_path: Path) -> None:
    path = written(tmp_path, _FILE)
    sweep = read_sweep([path])
    assert sweep.fixed == ("experiment=demo",)
    assert len(sweep.points()) == 8
    assert sweep.points()[0] == {
        "strategy.group": "layer",
        "strategy.scaling": "false",
        "seed": "0",
    }
    assert sweep.axes == Axes(("strategy.group",), ("strategy.scaling",))
    smaller = read_sweep([path, "seed=5", "strategy.group=row", "sparsity=0.6,0.7"])
    assert smaller.fixed == ("experiment=demo", "seed=5", "strategy.group=row")
    assert smaller.axes == Axes(("sparsity",), ("strategy.scaling",))
    assert len(smaller.points()) == 4


def test_linked_keys_change_together(tmp_path: Path) -> None:
    sweep = read_sweep([written(tmp_path, _LINKED)])
    clients = [(p["federation.num_clients"], p["strategy.min_clients"]) for p in sweep.points()]
    assert clients == [("2", "2"), ("2", "2"), ("4", "4"), ("4", "4")]
    # The number of clients tells the entries apart: the other key needs no row.
    assert sweep.axes == Axes(("federation.num_clients",), ("sparsity",))


def test_a_method_s_keys_stand_only_where_the_method_does(tmp_path: Path) -> None:
    text = (
        "linked: [{strategy: fedprllm, strategy.scaling: true}, {strategy: fedprllm, "
        "strategy.scaling: false}, {strategy: fedstats}]\ntable: {rows: [strategy]}"
    )
    sweep = read_sweep([written(tmp_path, text)])
    assert sweep.points()[2] == {"strategy": "fedstats"}
    assert sweep.keys == ("strategy", "strategy.scaling") == sweep.axes.rows


def test_names() -> None:
    def name(*arguments: str) -> str:
        return read_sweep(arguments).name

    assert name("sparsity=0.3,0.5") == name("sparsity=0.3,0.5,0.7")
    assert name("sparsity=0.3,0.5") == name("sparsity=0.3,0.5", "output_dir=x")
    assert name("sparsity=0.3,0.5") != name("sparsity=0.3,0.5", "pruner=magnitude")
    assert name("sparsity=0.3,0.5").startswith("sparsity-")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grids: {}", "`grids` is not a key of a sweep. Did you mean 'grid'?"),
        ("grid: [1]", "`grid` must be a mapping"),
        ("grid: {sparsity: 0.5}", "`grid.sparsity` must be a list"),
        ("grid: {sparsity: [[1]]}", "`grid.sparsity` must be a list"),
        ("seeds: 3", "`seeds` must be a list"),
        ("linked: {a: 1}", "`linked` must be a list of mappings"),
        ("{grid: {a: [1]}, linked: [{b: 1}, {a: 1}]}", "no key that `grid` sets"),
        ("{grid: {sparsity: [1]}, table: {rows: [sparsty]}}", "'sparsty' is not swept"),
        ("table: {row: []}", "`rows` and `columns`"),
        ("- a", "must be a mapping"),
        ("a: [", "must be YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep([written(tmp_path, text)])
    assert words in str(caught.value)


def test_wrong_commands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep: it is neither"):
        read_sweep(["nothing_like_it"])
    with pytest.raises(ConfigError, match="several values"):
        read_sweep(["sparsity=0.5"])
    with pytest.raises(ConfigError, match="is set by `linked`"):
        read_sweep([written(tmp_path, _LINKED), "strategy.min_clients=1"])


def test_a_group_that_the_command_fixes_needs_no_row() -> None:
    sweep = read_sweep(["experiment=beyond_main", "allocation=uniform", "data.partition=iid"])
    assert "allocation" not in sweep.axes.rows and "data.partition" not in sweep.axes.rows
    assert "allocation=uniform" in sweep.fixed
