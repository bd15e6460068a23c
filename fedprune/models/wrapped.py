"""A model that was made in Python, as the plain decoder that can be pruned.

Wrappers that compute what the model inside computes are taken off. What would make zeros in the
wrong matrices, or a folder that nothing loads, is refused with the way out.
"""

import torch
import transformers as hf
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from fedprune.errors import ModelError


def plain_model(model: nn.Module) -> "hf.PreTrainedModel":
    """Return the decoder inside a model.

    `model`: a causal language model, also one that is compiled or parallel. Raises ModelError if it
    is none, holds adapters, masks or quantised weights that belong to its values, or has weights
    elsewhere than in the CPU's memory.
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inside
        else:
            break
    kind = type(model).__name__
    _refuse_adapters(model, kind)
    if not isinstance(model, hf.PreTrainedModel):
        raise ModelError(
            f"A {kind} cannot be pruned: a model of transformers was expected. "
            "Give what AutoModelForCausalLM.from_pretrained returns."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(f"The {kind} is quantised; masks are made for full weights. Load it so.")
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"The {kind} has no head that predicts tokens. Load it by AutoModelForCausalLM."
        )
    _refuse_reparametrised(model, kind)
    _refuse_elsewhere(model, kind)
    return model


def _refuse_adapters(model: nn.Module, kind: str) -> None:
    """Refuse PEFT's adapters: whole wrappers, and layers that were put into the model's own."""
    owners = [model, *model.modules()]
    if any(type(module).__module__.partition(".")[0] == "peft" for module in owners):
        raise ModelError(
            f"The {kind} holds an adapter that is not merged. Merge it into the weights: "
            "model = model.merge_and_unload(), or delete it."
        )


def _refuse_reparametrised(model: nn.Module, kind: str) -> None:
    for name, module in model.named_modules():
        masked = [key for key in module._parameters if key.endswith("_orig")]
        if masked or is_parametrized(module):
            raise ModelError(
                f"`{name}` of the {kind} computes its weight from others (torch.nn.utils.prune or "
                "a parametrization). Make it permanent: torch.nn.utils.prune.remove(module, "
                "'weight') or parametrize.remove_parametrizations(module, 'weight')."
            )


def _refuse_elsewhere(model: nn.Module, kind: str) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != torch.device("cpu"):
            raise ModelError(
                f"`{name}` of the {kind} is on '{tensor.device}', the model is read from the CPU's "
                "memory. Load it without device_map, or move it: model.cpu()."
            )
