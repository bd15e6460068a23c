"""`fedprune apply`: a run's model of its base model and its masks alone."""

from fedprune.cli import main
from tests.support.jobs import job


def test_a_run_s_model_of_its_masks_alone(tmp_path, capsys):
    job(tmp_path / "run", "sparsity=0.6")
    assert main(["apply", "demo", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    assert str(tmp_path / "again") in capsys.readouterr().out
    for name in ("model.safetensors", "fedprune/masks.safetensors", "config.json"):
        made = (tmp_path / "again" / name).read_bytes()
        assert made == (tmp_path / "run" / "model" / name).read_bytes()
    assert main(["apply", "demo", str(tmp_path / "none"), str(tmp_path / "x")]) == 1
    assert "No mask sidecar" in capsys.readouterr().err
