"""Whole jobs on mixtures of experts, against a slow Wanda and against all texts in one place."""

import json
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch.nn import functional

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.config.pattern import Pattern
from fedprune.models.export import SIDECAR, apply_masks
from fedprune.models.loading import load_model
from fedprune.models.sources import MappedWeights
from fedprune.pruning.blocks import BlockWalk, prune_block
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import mask_of
from tests.support.jobs import Shuffled, job, masks_of, same_masks, samples_of
from tests.support.mixtures import tiny_mixture_folder

CLIENTS = 3
CONTRACT = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixtures")
    return cache(lambda family: tiny_mixture_folder(family, root / family))


def plain(folder: Path):
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def expert_inputs(module, hidden, index):
    """Yield (expert, parameter, stored weight, inputs) of a call of fused experts."""
    for expert in range(module.num_experts):
        _, tokens = torch.where((index == expert).T)
        gate_up, down = module.gate_up_proj[expert], module.down_proj[expert]
        chosen = hidden[tokens]
        yield expert, "gate_up_proj", gate_up, chosen
        made = chosen @ gate_up if module.is_transposed else functional.linear(chosen, gate_up)
        if module.has_bias:
            made = made + module.gate_up_proj_bias[expert]
        yield expert, "down_proj", down, module._apply_gate(made)


class Watch:
    """The weights and summed squares of everything in a block, by hooks on a whole model."""

    def __init__(self, layer):
        self.weights, self.sums, self.handles = {}, {}, []
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                hook = partial(self.linear, name)
            elif hasattr(module, "is_transposed"):
                hook = partial(self.experts, name)
            else:
                continue
            self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def linear(self, name, module, args, kwargs):
        self.add(name, module.weight, args[0].reshape(-1, args[0].shape[-1]))

    def experts(self, name, module, args, kwargs):
        hidden, index, _ = (*args, *kwargs.values())
        for expert, part, weight, inputs in expert_inputs(module, hidden, index):
            weight = weight.T if module.is_transposed else weight
            self.add(f"{name}.{expert}.{part}", weight, inputs)

    def add(self, name, weight, inputs):
        self.weights[name] = weight.detach()
        squares = inputs.detach().square().sum(0).double()
        self.sums[name] = self.sums.get(name, 0) + squares


def wanda(model, block: int, samples) -> dict[str, np.ndarray]:
    """Wanda's masks of a block, half of each row, lower index first; the block is pruned then."""
    watch = Watch(model.model.layers[block])
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample[None], use_cache=False)
    for handle in watch.handles:
        handle.remove()
    masks = {}
    for name, weight in watch.weights.items():
        norms = watch.sums[name].float().double().sqrt().float()
        if not norms.any():  # nobody's tokens reached the expert: by magnitude
            norms += 1
        prune = (weight.abs() * norms).sort(dim=1, stable=True).indices[:, : weight.shape[1] // 2]
        mask = torch.ones_like(weight, dtype=torch.bool).scatter_(1, prune, False)
        masks[name] = mask.numpy()
        weight.masked_fill_(~mask, 0)
    return masks


def pooled(*options: str) -> list[torch.Tensor]:
    return [sample for client in samples_of(CLIENTS, *options) for sample in client]


@pytest.mark.parametrize("family", CONTRACT)
def test_iterative_masks_equal_a_slow_wanda_on_all_texts_bit_for_bit(tmp_path, folders, family):
    options = [f"model={folders(family)}", "strategy=fedstats", "schedule=iterative"]
    results = job(tmp_path / "run", *options, grid=Shuffled(app, CLIENTS, seed=1))
    model, found = plain(folders(family)), masks_of(tmp_path / "run")
    for block in range(len(model.model.layers)):
        expected = wanda(model, block, pooled(*options))
        assert {name for at, name in found if at == block} == set(expected)
        for name, keep in expected.items():
            assert np.array_equal(found[block, name], keep), (block, name)
    assert results["sparsity"]["overall"] == 0.5
    exported, tokens = plain(tmp_path / "run" / "model"), pooled(*options)[0][None]
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, model(tokens).logits)


def on_one_machine(folder: Path, pruner: str, samples, schedule: str) -> dict:
    """Return the masks that a pruner makes of all samples in one place."""
    loaded = load_model(config_from_overrides([f"model={folder}"]).model)
    walk, found = BlockWalk(loaded, samples), {}
    kinds = make_pruner(config_from_overrides([f"pruner={pruner}"]).pruner)
    while walk.blocks_left:
        block = walk.position
        made = prune_block(walk, kinds, BlockSpec(0.5, Pattern(), "row"))
        found |= {(block, name): mask_of(one).to_bool() for name, one in made.items()}
        walk.advance(made if schedule == "iterative" else {})
    return found


@pytest.mark.parametrize("schedule", ["one_shot", "iterative"])
@pytest.mark.parametrize("family", ["llama4", "jetmoe", "deepseek_v3", "dbrx"])
def test_federated_sums_equal_one_machine_to_the_bit(tmp_path, folders, family, schedule):
    options = [f"model={folders(family)}", "strategy=fedstats", f"schedule={schedule}"]
    options += ["pruner.group=row", "pruner=ria", "schedule.prefix=dense"][
        : 2 if schedule == "iterative" else 3
    ]
    job(tmp_path / "run", *options, grid=Shuffled(app, CLIENTS, seed=2))
    expected = on_one_machine(folders(family), "ria", pooled(*options), schedule)
    assert same_masks(masks_of(tmp_path / "run"), expected)


RUNS = [
    "strategy=fedprllm schedule=iterative strategy.scaling=true",
    "strategy=fedprllm schedule=one_shot strategy.decode=true",
    "strategy=fedprllm pruner=magnitude",
    "strategy=fedspallm",
    "strategy=fedspallm pruner=sparsegpt strategy.rounds=2 sparsity=0.6",
    "strategy=fedstats allocation=owl",
    "strategy=fedstats strategy.pooling=clients schedule=one_shot pruner.pattern='2:4'",
    "strategy=fedhessian pruner=sparsegpt",
    "strategy=fedhessian pruner=alps schedule=one_shot",
    "strategy=fedhessian pruner=sparseswaps strategy.pooling=scaled",
    "strategy=fedhessian pruner=sparsegpt strategy.moments=eigen",
]


@pytest.mark.parametrize("options", RUNS)
@pytest.mark.parametrize("family", ["gpt_oss", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_every_method_prunes_experts_to_a_model_that_plain_transformers_loads(
    tmp_path, folders, family, options
):
    results = job(tmp_path / "run", f"model={folders(family)}", *options.split(), clients=CLIENTS)
    exported = plain(tmp_path / "run" / "model")
    masks = masks_of(tmp_path / "run")
    assert len(masks) == len(results["sparsity"]["linears"])
    assert abs(results["sparsity"]["overall"] - results["sparsity"]["target"]) < 0.02
    dense = plain(folders(family)).state_dict()
    for name, tensor in exported.state_dict().items():
        zeros = sum(
            (~mask).sum() for (block, linear), mask in masks.items() if owner(block, linear) == name
        )
        assert int((tensor == 0).sum()) >= zeros, name
        if not zeros:
            assert torch.equal(tensor, dense[name]), name


def owner(block: int, linear: str) -> str:
    """Return the parameter in which a linear of a tiny mixture lies."""
    head, _, last = linear.rpartition(".")
    place, _, number = head.rpartition(".")
    inside = f"{place}.{last}" if number.isdigit() else f"{linear}.weight"
    return f"model.layers.{block}.{inside}"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_masks_alone_make_the_same_model_again_block_by_block(tmp_path, folders, family):
    dense = folders(family)
    loaded = load_model(config_from_overrides([f"model={dense}"]).model)
    assert isinstance(loaded.source, MappedWeights)  # files hold each expert's matrices apart
    job(tmp_path / "run", f"model={dense}", "strategy=fedprllm", clients=2)
    model = tmp_path / "run" / "model"
    apply_masks(dense, model / SIDECAR, tmp_path / "again")
    first, second = plain(model).state_dict(), plain(tmp_path / "again").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    stored = {name for file in dense.glob("*.safetensors") for name in load_file(file)}
    assert {name for file in model.glob("*.safetensors") for name in load_file(file)} == stored
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["experts"]["experts"] == 2 * loaded.model.config.num_local_experts
    assert list(results["coverage"]["dense"])[0] in ("mlp.gate.weight", "mlp.router.weight")
    assert "matrices that stay dense" in (model / "README.md").read_text()
