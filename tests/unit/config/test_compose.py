"""Run-config and overrides: shortcuts, paths, precedence, and errors that name the right key."""

import threading
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fedprune.config import SHORTCUTS, compose_config, config_from_overrides
from fedprune.config.overrides import CONF
from fedprune.errors import ConfigError

ODD_PATHS = [
    "/models/with space/x",
    "/a=b/c=d",
    "/a,b,c",
    "/it's",
    '/say "hi"',
    "/mixed 'a' \"b\"",
    "/brackets[1]{2}(3)",
    "/dollar/${seed}/$x",
    "/back\\slash",
    "/trailing\\",
    "/percent%20#hash;semi&amp|pipe",
    "/umlaut/ärger/日本",
    "~/mine",
    "./here",
    "../there",
    "/12345678",
]


def problem(run_config) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_config(run_config)
    return str(caught.value)


def test_empty_texts_leave_the_defaults():
    assert compose_config(dict.fromkeys([*SHORTCUTS, "overrides"], "")) == compose_config({})


def test_shortcuts_reach_their_keys():
    config = compose_config(
        {
            "pruner": "magnitude",
            "sparsity": 0.7,
            "seed": 3,
            "min-clients": 9,
            "output-dir": "/out put/a,b",
        }
    )
    assert (config.pruner.name, config.sparsity, config.seed) == ("magnitude", 0.7, 3)
    assert config.strategy.min_clients == 9  # the number of nodes is Flower's, not known here
    assert config.output_dir == "/out put/a,b"


def test_numbers_may_come_as_text():
    assert compose_config({"sparsity": "0.7", "seed": "3"}).sparsity == 0.7


def test_overrides_have_the_last_word():
    config = compose_config({"sparsity": 0.7, "overrides": "sparsity=0.6 pruner.seq_len=512"})
    assert (config.sparsity, config.pruner.seq_len) == (0.6, 512)
    assert compose_config({"overrides": "seed=1 seed=2"}).seed == 2
    assert compose_config({"model": "/x", "overrides": "model=demo"}).model.path == ""


@pytest.mark.parametrize("path", ODD_PATHS)
def test_odd_paths_survive_every_way_in(path):
    ways = [
        compose_config({"model": path, "data": path, "output-dir": path}),
        config_from_overrides([f"model={path}", f"data={path}", f"data.heldout_path={path}"]),
        config_from_overrides(["model=hf", f"model.path={path}", "data=files", f"data.path={path}"])
        if not set(path) & set("$\\")
        else None,
    ]
    for config in filter(None, ways):
        expected = (path, str(Path(path).expanduser().absolute()))
        assert config.model.name == "hf" and config.model.path in expected
        assert config.data.source == "files" and config.data.path in expected


def test_paths_inside_the_overrides_string_are_quoted_as_in_a_shell():
    config = compose_config({"overrides": "model='/a b/c=d' \"data=/it's\" data.glob=*.x"})
    assert (config.model.path, config.data.path) == ("/a b/c=d", "/it's")
    assert config.data.glob == "*.x"


def test_hydra_s_own_quotes_are_taken_off():
    config = config_from_overrides(["model='/a,b'", 'data="/c d"', "output_dir='e,f'"])
    assert (config.model.path, config.data.path, config.output_dir) == ("/a,b", "/c d", "e,f")


@pytest.mark.parametrize(
    ("value", "source", "path"),
    [
        ("org/name", "hub", "org/name"),
        ("allenai/c4", "hub", "allenai/c4"),
        ("some/deep/folder", "files", "some/deep/folder"),
        ("folder/texts.jsonl", "files", "folder/texts.jsonl"),
        ("/abs", "files", "/abs"),
        ("wikitext2", "hub", "Salesforce/wikitext"),
        ("node", "node", ""),
    ],
)
def test_data_means_option_path_or_hub_id(value, source, path):
    config = compose_config({"data": value})
    assert (config.data.source, config.data.path) == (source, path)


def test_existing_local_paths_win_and_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "test.txt").write_text("x")
    overrides = ["model=org/name", "data=corpus", "data.heldout_path=test.txt", "output_dir=out"]
    config = config_from_overrides(overrides)
    assert config.model.path == str(tmp_path / "org" / "name")
    assert (config.data.source, config.data.path) == ("files", str(tmp_path / "corpus"))
    assert config.data.heldout_path == str(tmp_path / "test.txt")
    assert config.output_dir == "out"  # the command line decides about results
    assert compose_config({"model": "org/name", "data": "corpus"}).data.path == "corpus"


def test_data_node_switches_the_baselines_off():
    config = compose_config({"data": "node", "overrides": "data.glob=*.md"})
    assert not config.evaluation.local_only and not config.evaluation.centralized
    assert config.data.glob == "*.md"
    message = problem({"data": "node", "overrides": "evaluation.centralized=true"})
    assert "`evaluation.centralized` must be false" in message


@pytest.mark.parametrize(
    ("run_config", "words"),
    [
        ({"sparsty": 0.5}, ["'sparsty'", "run-config", "Did you mean 'sparsity'", "`overrides`"]),
        ({"min_clients": 2}, ["'min_clients'", "Did you mean 'min-clients'"]),
        ({"seed": True}, ["`seed`", "a whole number", "true"]),
        ({"seed": 3.0}, ["`seed`", "a whole number", "3.0"]),
        ({"sparsity": "much"}, ["`sparsity`", "a number", "'much'"]),
        ({"sparsity": float("nan")}, ["`sparsity`", "finite"]),
        ({"sparsity": "0,5"}, ["`sparsity`", "one value", "'0,5'"]),
        ({"sparsity": "[0.5"}, ["`sparsity`", "'[0.5'", "cannot be read"]),
        ({"pruner": "wnada"}, ["`pruner`", "'alps', 'gptq', 'magnitude'", "Did you mean 'wanda'"]),
        ({"strategy": "fedavg"}, ["`strategy`", "'fedprllm'", "'fedavg'"]),
        ({"experiment": "dmo"}, ["`experiment`", "Did you mean 'demo'"]),
        ({"model": "dem"}, ["`model`", "a path", "hub id", "Did you mean 'demo'"]),
        ({"data": "wikitex2"}, ["`data`", "Did you mean 'wikitext2'"]),
        ({"data": "_base_"}, ["`data`", "'_base_'"]),
        ({"data": "stdlib,c4"}, ["`data`", "'stdlib,c4'"]),
        ({"overrides": "sparsty=0.5"}, ["'sparsty'", "Did you mean 'sparsity'"]),
        ({"overrides": "seq_len=64"}, ["'pruner.seq_len' or 'evaluation.seq_len'"]),
        ({"overrides": "pruner.seq-len=64"}, ["Did you mean 'pruner.seq_len'"]),
        ({"overrides": "prune.sparsity=0.6"}, ["'prune.sparsity'", "Did you mean 'sparsity'"]),
        ({"overrides": "min-clients=3"}, ["Did you mean 'strategy.min_clients'"]),
        ({"overrides": "+experiment=demo"}, ["`+experiment`", "Write experiment=..."]),
        ({"overrides": "~seed"}, ["'~seed'", "key=value"]),
        ({"overrides": "sparsity"}, ["'sparsity'", "key=value"]),
        ({"overrides": "sparsity=0.5,0.6"}, ["`sparsity`", "one value"]),
        ({"overrides": "data.path='open"}, ["`overrides`", "quoted as in a shell"]),
        ({"overrides": "seed=${nothing}"}, ["seed=${nothing}", "nothing"]),
        ({"overrides": "output_dir='${oc.env:HOME}'"}, ["`output_dir`", "'${oc.env:HOME}'"]),
        ({"overrides": "\"output_dir='a${oc.decode:${seed}}'\""}, ["`output_dir`", "oc.decode"]),
        ({"overrides": "\"card.license='${a.${oc.env:X}}'\""}, ["`card.license`", "oc.env"]),
        ({"overrides": "seed=${oc.env:UID}"}, ["`seed`", "Write the value itself"]),
        ({"output-dir": "${hydra:runtime.cwd}"}, ["`output_dir`", "hydra:runtime.cwd"]),
        ({"overrides": "model.path=/x"}, ["`model.path`", "model=/path/to/folder"]),
        ({"overrides": "model={name:hf}"}, ["`model`", "{name:hf}"]),
        ({"overrides": "pruner.pattern=1:4"}, ["`sparsity` must be 0.75", "Set sparsity=0.75"]),
    ],
)
def test_mistakes_are_told_in_the_user_s_words(run_config, words):
    message = problem(run_config)
    for word in words:
        assert word in message


def test_problems_of_keys_options_and_values_come_together():
    message = problem(
        {"sparsty": 1, "pruner": "wnada", "overrides": "seed=x foo evaluation.seqlen=3"}
    )
    for word in ("'sparsty'", "`pruner`", "`seed`", "'foo'", "'evaluation.seq_len'"):
        assert word in message


def test_the_command_line_knows_how_many_clients_a_simulation_has():
    with pytest.raises(ConfigError, match="`strategy.min_clients` must be at most .* 3 with 2"):
        config_from_overrides(["strategy.min_clients=3"])
    config_from_overrides(["strategy.min_clients=3", "federation.num_clients=3"])
    config_from_overrides(["strategy.min_clients=3", "federation.connection=lab"])


def test_texts_that_look_like_numbers_stay_texts():
    config = compose_config(
        {"model": "o/m", "data": "o/d", "overrides": "model.revision=12345678 data.split=1e5"}
    )
    assert (config.model.revision, config.data.split) == ("12345678", "1e5")
    assert compose_config({"overrides": "model.revision=null"}).model.revision is None


def test_interpolation_between_keys_works():
    config = compose_config({"overrides": "output_dir='runs/s${seed}' seed=4"})
    assert config.output_dir == "runs/s4"


def test_a_surrounding_hydra_program_is_left_as_it_was():
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="outer"):
        outer = GlobalHydra.instance().hydra
        compose_config({"seed": 5})
        assert GlobalHydra.instance().hydra is outer and outer is not None
    assert not GlobalHydra.instance().is_initialized()


def test_an_error_leaves_hydra_s_state_clean():
    problem({"overrides": "seed=${nothing}"})
    assert not GlobalHydra.instance().is_initialized()


def test_threads_compose_their_own_configuration():
    found: dict[int, int] = {}

    def work(seed: int) -> None:
        found[seed] = compose_config({"seed": seed}).seed

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: seed for seed in range(8)}
