"""Fine-tune a pruned model with its zeros kept, all weights or by LoRA (`pip install peft`).

    fedprune run output_dir=runs/demo
    python examples/finetune.py runs/demo/model tuned
    python examples/finetune.py runs/demo/model tuned --lora

The texts are the documentation inside Python; put your own in `texts`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fedprune.data.samples import packed_samples
from fedprune.data.stdlib import stdlib_documents
from fedprune.models.export import SIDECAR
from fedprune.models.finetune import keep_zeros
from fedprune.models.sidecar import read_sidecar


def main() -> None:
    """Train, and write the model with the masks that it still has."""
    parser = argparse.ArgumentParser(description="Fine-tune a pruned model with its zeros kept.")
    parser.add_argument("model", type=Path, help="a pruned model's folder")
    parser.add_argument("out", type=Path, help="the new model's folder")
    parser.add_argument("--lora", action="store_true", help="train low-rank factors only")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=5e-4)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    masks = read_sidecar(arguments.model / SIDECAR)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    train, heldout = (
        packed_samples(stdlib_documents(split), tokenizer, count, 128, seed=0)
        for split, count in (("train", 8 * arguments.steps), ("heldout", 32))
    )
    train, heldout = (torch.stack([one.tokens for one in found]) for found in (train, heldout))
    print(f"loss before: {loss(model, heldout):.4f}")
    if arguments.lora:
        model = trained_by_lora(model, train, arguments.rate)
        keep_zeros(model, masks)  # the factors' product has filled them
    else:
        keep_zeros(model, masks)
        fit(model, train, arguments.rate)
    print(f"loss after: {loss(model, heldout):.4f}")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / SIDECAR).parent.mkdir(exist_ok=True)
    shutil.copyfile(arguments.model / SIDECAR, arguments.out / SIDECAR)


def fit(model: torch.nn.Module, samples: Tensor, rate: float, batch: int = 8) -> None:
    """Train all parameters that have gradients, once over the samples."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    model.train()
    for tokens in samples.split(batch):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.eval()


def trained_by_lora(model: PreTrainedModel, samples: Tensor, rate: float) -> PreTrainedModel:
    """Train low-rank factors of every linear map in the blocks, and add their product."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    fit(adapted, samples, 4 * rate)
    return adapted.merge_and_unload()


@torch.no_grad()
def loss(model: torch.nn.Module, samples: Tensor) -> float:
    """Return the mean loss on samples."""
    return model(input_ids=samples, labels=samples).loss.item()


if __name__ == "__main__":
    main()
