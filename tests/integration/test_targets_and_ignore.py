"""A run prunes what was selected of a model, exactly, and leaves all else as it was."""

import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.models.loading import load_model
from tests.support.jobs import job, masks_of, weights_of

SELECTED = ("pruner.targets=mlp", "pruner.ignore=model.layers.0,re:.*gate_proj")
LINEARS = {(block, f"mlp.{name}_proj") for block in range(1, 6) for name in ("up", "down")}


@pytest.mark.parametrize(
    "options",
    [
        ("strategy=fedprllm",),
        ("strategy=fedspallm",),
        ("strategy=fedstats", "schedule=iterative", "evaluation.centralized=true"),
        ("strategy=fedhessian", "pruner=sparsegpt"),
        ("strategy=fedstats", "allocation=owl", "allocation.spread=0.1"),
        ("strategy=fedprllm", "pruner=magnitude"),
    ],
    ids=lambda options: " ".join(options),
)
def test_only_what_is_selected_is_pruned(tmp_path, options):
    results = job(tmp_path / "run", *options, *SELECTED, clients=2)
    masks = masks_of(tmp_path / "run")
    assert set(masks) == LINEARS
    dense, made = load_model(config_from_overrides([]).model), weights_of(tmp_path / "run")
    for (block, name), weight in made.items():
        if (block, name) not in LINEARS:
            assert torch.equal(weight, dense.weight(block, name))
    assert set(results["sparsity"]["linears"]) == {f"model.layers.{b}.{n}" for b, n in LINEARS}
    assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=0.01)
    assert set(results["coverage"]["why"].values()) == {"not selected"}
    assert results["coverage"]["unasked"] == 0 < results["coverage"]["share"]
    assert results["method"]["targets"] == "mlp"
    measured = results["perplexity"]["stdlib"]
    if measured["centralized"] is not None:  # the same selection, and exact sums
        assert measured["centralized"] == measured["pruned"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "mlp.gate_proj.weight (not selected)" in card
    page = (tmp_path / "run" / "report.html").read_text()
    assert "of the matrices in the blocks stay dense" in page


def test_an_entry_that_matches_nothing_ends_a_run_before_anybody_is_asked(tmp_path):
    with pytest.raises(ConfigError, match="'ffn' matches nothing that can be pruned"):
        job(tmp_path / "run", "strategy=fedprllm", "pruner.targets=ffn")
    assert not (tmp_path / "run" / "ledger.json").exists()  # nobody was asked for anything
