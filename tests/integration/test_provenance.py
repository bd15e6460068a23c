"""Models held against where they come from, and made again of the statistics that they are of."""

import importlib.util
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from fedprune.cli import main
from fedprune.disk import file_sha256
from fedprune.errors import ModelError
from fedprune.models.kept import KEPT, read_kept
from fedprune.results.provenance import PROVENANCE, read_provenance

pytestmark = pytest.mark.usefixtures("three_blocks")

SMALL = (
    "federation.backend=inline",
    "federation.num_clients=2",
    "pruner.num_calibration_samples=2",
    "pruner.seq_len=32",
    "evaluation.max_windows=2",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection, and a model of it."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["collect", *SMALL, f"output_dir={folder / 'collected'}"]) == 0
    solve = ["solve", str(folder / "collected"), "sparsity=0.6", "allocation=owl"]
    assert main([*solve, "evaluation.max_windows=2", f"output_dir={folder / 'solved'}"]) == 0
    return folder


def verify(*arguments):
    return main(["verify", *map(str, arguments)])


def copied(made, tmp_path):
    return shutil.copytree(made / "solved" / "model", tmp_path / "model")


def test_a_model_follows_from_its_statistics(made, tmp_path, capsys):
    model = copied(made, tmp_path)  # without its run
    assert verify(model) == 0
    assert verify(model, made / "collected") == 0
    assert "every byte of weights and masks follows" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing is left behind


@pytest.mark.parametrize("name", ["model.safetensors", "fedprune/masks.safetensors", "config.json"])
def test_a_changed_file_is_named(made, tmp_path, capsys, name):
    model = copied(made, tmp_path)
    data = bytearray((model / name).read_bytes())
    data[-3] ^= 1
    (model / name).write_bytes(data)
    (model / "more.txt").write_text("")
    assert verify(model) == 1
    told = capsys.readouterr().err
    assert f"`{name}` is another" in told and "`more.txt` was not made" in told
    (model / name).unlink()
    if name != "config.json":
        assert verify(model) == 1
        assert f"`{name}` is missing" in capsys.readouterr().err


quantized = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None,
    reason="compressed-tensors is not installed: pip install 'fedprune[quantized]'",
)


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """A collection of what every kind of model is made of."""
    folder = tmp_path_factory.mktemp("moments") / "collected"
    kinds = "strategy.statistics='columns,moments,cosines'"
    assert main(["collect", *SMALL, kinds, f"output_dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("pruner=structured", "sparsity=0.25"), "changed"),
        (("pruner=structured", "sparsity=0.25", "pruner.repair=false"), "kept"),
        (
            (
                *("strategy=depth", "strategy.remove=1", "strategy.contiguous=false"),
                "strategy.repair=false",
            ),
            "kept",
        ),
        (("pruner=wanda", "sparsity=0.5", "pruner.ignore='mlp.down_proj'"), ""),
        pytest.param(("pruner=rounding", "pruner.group_size=32"), "", marks=quantized),
        pytest.param(("pruner=gptq", "pruner.group_size=32"), "", marks=quantized),
        pytest.param(
            ("pruner=sparsegpt", "pruner.bits=4", "pruner.group_size=32", "sparsity=0.5"),
            "",
            marks=quantized,
        ),
    ],
    ids=["refitted", "narrower", "shallower", "ignoring", "rounding", "gptq", "joint"],
)
def test_every_kind_of_model_follows_from_its_statistics(moments, tmp_path, capsys, options, what):
    made = tmp_path / "made"
    small = ["evaluation.max_windows=2", f"output_dir={made}"]
    assert main(["solve", str(moments), *options, *small]) == 0
    assert verify(made) == 0
    assert verify(made, moments) == 0
    assert "every byte of weights and masks follows" in " ".join(capsys.readouterr().out.split())
    if what:
        assert read_kept(made / "model" / KEPT)[0]["survivors"] == what
    # Whoever changes a weight can also write another hash of it; the statistics tell.
    weights = made / "model" / "model.safetensors"
    tensors = load_file(weights)
    name = next(one for one in tensors if "down_proj.weight" in one and "shape" not in one)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    told = made / "model" / PROVENANCE
    plain = json.loads(told.read_text())
    plain["files"]["model.safetensors"] = file_sha256(weights)
    told.write_text(json.dumps(plain))
    assert verify(made) == 0
    assert verify(made, moments) == 1
    assert "`model.safetensors` is another" in capsys.readouterr().err


def test_a_model_with_a_map_in_place_of_blocks_follows_from_its_run(tmp_path, capsys):
    made = tmp_path / "run"
    run = ["run", "strategy=depth", "strategy.remove=1", *SMALL, f"output_dir={made}"]
    assert main([*run, "evaluation.local_only=false", "evaluation.centralized=false"]) == 0
    assert verify(made, made) == 0
    assert "every byte of weights and masks follows" in " ".join(capsys.readouterr().out.split())


def test_other_choices_do_not_give_the_same_bytes(made, tmp_path, capsys):
    model = copied(made, tmp_path)
    place = model / PROVENANCE
    told = json.loads(place.read_text())
    told["choices"] = [one.replace("sparsity=0.6", "sparsity=0.5") for one in told["choices"]]
    place.write_text(json.dumps(told))
    assert verify(model, made / "collected") == 1
    assert "`model.safetensors` is another than was made" in capsys.readouterr().err


def test_other_statistics_and_models_without_any_are_refused(made, tmp_path, capsys):
    other = [*SMALL, "seed=5", f"output_dir={tmp_path / 'other'}"]
    assert main(["collect", *other]) == 0
    assert verify(made / "solved", tmp_path / "other") == 2
    assert "was made of statistics with the SHA-256" in capsys.readouterr().err
    run = ["run", *SMALL, f"output_dir={tmp_path / 'run'}", "evaluation.centralized=false"]
    assert main(run) == 0
    assert verify(tmp_path / "run") == 0
    assert verify(tmp_path / "run", made / "collected") == 2
    assert "SHA-256 none" in capsys.readouterr().err


def test_it_names_no_path_and_no_site(made):
    text = (made / "solved" / "model" / PROVENANCE).read_text()
    assert str(made) not in text and "output_dir" not in text and "/tmp" not in text


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', "[" * 100_000, '{"format": "x", "version": 9}']
)
def test_damaged_provenance_is_refused(made, tmp_path, content):
    model = copied(made, tmp_path)
    (model / PROVENANCE).write_text(content)
    with pytest.raises(ModelError, match="damaged|of the form"):
        read_provenance(model)
    (model / PROVENANCE).unlink()
    with pytest.raises(ModelError, match="not made by this release"):
        read_provenance(model)
