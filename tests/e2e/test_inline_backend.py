"""The same job in Flower's simulation and inside this process: equal masks, equal bytes."""

import json
from pathlib import Path

import pytest

from fedprune.cli import main
from fedprune.models.export import SIDECAR
from fedprune.models.sidecar import read_sidecar

pytestmark = pytest.mark.e2e

SMALL = ["pruner.num_calibration_samples=2", "pruner.seq_len=32", "evaluation.max_windows=4"]
# Flower's numbers of run, nodes and tasks are random, each one byte longer in half of the runs.
_NUMBERS = 5


def masks_of(sidecar: Path) -> dict[tuple[int, str], bytes]:
    blocks = read_sidecar(sidecar)
    return {(b, n): mask.bits.tobytes() for b, masks in blocks.items() for n, mask in masks.items()}


def weights_of(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


VOTES: tuple[str, ...] = ()
MOMENTS = ("strategy=fedhessian", "pruner=sparsegpt", "schedule=iterative", "allocation=owl")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(VOTES, id="votes"),
        pytest.param(MOMENTS, id="moments", marks=pytest.mark.slow),
    ],
)
def test_backends_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for name in ("ray", "inline"):
        assert (
            main(["run", *SMALL, *options, f"federation.backend={name}", f"output_dir={name}"]) == 0
        )
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    ray, inline = found["ray"], found["inline"]
    masks = [masks_of(tmp_path / name / "model" / SIDECAR) for name in found]
    assert masks[0] == masks[1]
    assert weights_of(tmp_path / "ray") == weights_of(tmp_path / "inline")
    assert ray["perplexity"] == inline["perplexity"]
    assert ray["agreement"] == inline["agreement"]
    # The configuration travels in every request, and names backend and folder.
    longer = 2 * (len("inline") - len("ray"))
    ours = sorted(inline["ledger"]["entries"], key=lambda e: (e["round"], e["phase"], e["client"]))
    theirs = sorted(ray["ledger"]["entries"], key=lambda e: (e["round"], e["phase"], e["client"]))
    for one, other in zip(ours, theirs, strict=True):
        assert one["client"] == other["client"]
        assert abs(one["bytes_up"] - other["bytes_up"]) <= _NUMBERS
        assert abs(one["bytes_down"] - longer - other["bytes_down"]) <= _NUMBERS
