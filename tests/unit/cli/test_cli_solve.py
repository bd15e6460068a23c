"""`fedprune collect`, `solve`, `merge` and `sweep from=`, as they are typed."""

import json
import shutil

import pytest

from fedprune.cli import main
from fedprune.models.export import SIDECAR
from fedprune.models.sidecar import read_sidecar
from fedprune.results.tables import plain_table

QUICK = (
    "evaluation.max_windows=1",
    "strategy.wait=1",
    "pruner.num_calibration_samples=2",
    "pruner.seq_len=48",
    "federation.backend=inline",
)


def collect(folder, *more):
    return main(["collect", *QUICK, *more, f"output_dir={folder}"])


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "stats"
    assert collect(folder, "federation.num_clients=3", "strategy.min_clients=3") == 0
    return folder


def test_a_collection_ends_with_statistics_and_no_model(stats):
    assert (stats / "statistics" / "statistics.json").is_file() and not (stats / "model").exists()
    results = json.loads((stats / "results.json").read_text())
    assert results["statistics"]["kinds"] == ["columns"] and results["statistics"]["tokens"] == 288
    shown = plain_table(results)
    assert "collect · columns" in shown and "288" in shown and "pruned" not in shown
    assert results["sparsity"]["zeros"] == 0 and (stats / "report.html").is_file()


def test_a_model_is_made_of_them_with_the_collection_s_model_and_texts(stats, tmp_path, capsys):
    made = tmp_path / "made"
    assert main(["solve", str(stats), "sparsity=0.6", "pruner=ria", f"output_dir={made}"]) == 0
    assert "of 1,105,920 weights pruned" in capsys.readouterr().out
    results = json.loads((made / "results.json").read_text())
    assert results["method"]["pruner"] == "ria" and len(results["clients"]) == 3
    assert (made / "model" / "config.json").is_file() and (made / "model" / "README.md").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pruner=sparsegpt",), "strategy.statistics=columns,moments"),
        (("model.dtype=bfloat16",), "are of another model"),
        (("evaluation.local_only=true",), "must be false"),
        (("pruner.num_calibration_samples=9",), "about what clients do"),
        (("strategy=fedstats",), "makes no model of collected statistics"),
    ],
)
def test_what_the_statistics_are_not_enough_for(stats, tmp_path, capsys, words, told):
    folder = tmp_path / "made"
    assert main(["solve", str(stats), *words, f"output_dir={folder}"]) in (1, 2)
    assert told in capsys.readouterr().err.replace("\n", " ")
    assert not (folder / "model").exists()


@pytest.mark.slow
def test_a_sweep_of_statistics_makes_the_same_models_and_is_not_done_twice(stats, tmp_path, capsys):
    words = ["sweep", "sparsity=0.4,0.6", "pruner=wanda", f"from={stats}", "--jobs=1"]
    assert main([*words, f"output_dir={tmp_path / 'sweep'}"]) == 0
    made = tmp_path / "made"
    assert main(["solve", str(stats), "sparsity=0.6", f"output_dir={made}"]) == 0
    (folder,) = (tmp_path / "sweep").glob("*sparsity=0.6*")
    kept = read_sidecar(folder / "masks.safetensors")
    alone = read_sidecar(made / "model" / SIDECAR)
    assert all(kept[b][n].checksum == alone[b][n].checksum for b in alone for n in alone[b])
    capsys.readouterr()
    assert main([*words, f"output_dir={tmp_path / 'sweep'}"]) == 0
    assert "2 of 2 jobs are done already" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(stats / "statistics", other)
    words[3] = f"from={other}"
    assert main([*words, f"output_dir={tmp_path / 'sweep'}"]) == 2
    assert "a model of other statistics" in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_that_is_none(tmp_path, capsys):
    assert main(["solve", str(tmp_path)]) == 2
    assert "`fedprune collect` makes one" in capsys.readouterr().err.replace("\n", " ")
    assert main(["sweep", "sparsity=0.4,0.6", f"from={tmp_path / 'gone'}"]) == 2
    assert "`from` must be one statistics folder" in capsys.readouterr().err.replace("\n", " ")


def test_statistics_of_the_same_run_do_not_add_up(stats, tmp_path, capsys):
    shutil.copytree(stats / "statistics", tmp_path / "copy")
    words = ["merge", str(stats), str(tmp_path / "copy"), str(tmp_path / "twice")]
    assert main(words) == 2
    assert "both hold the sums of run" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "twice").exists()
