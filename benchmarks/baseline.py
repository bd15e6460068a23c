"""One-shot FedPrLLM with Wanda, written plainly: what everything here is compared with.

Every client loads the whole model, keeps the inputs and the outputs of all its sequences in two
buffers made for 128 of them, scores every weight, sorts the scores, and keeps its masks as
booleans. The server loads the whole model, holds all clients' masks, adds them up, sorts the votes,
and prunes, evaluates and saves the model in memory.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

SEQUENCES = 128  # that the buffers have room for, however many there are
Masks = dict[str, Tensor]


def client(folder: Path, samples: Sequence[Tensor], sparsity: float) -> Masks:
    """Return name -> boolean mask of a whole model's linear maps, True where a weight is pruned."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    config = model.config
    length = len(samples[0])
    inputs = torch.zeros(SEQUENCES, length, config.hidden_size, dtype=model.dtype)
    outputs = torch.zeros_like(inputs)
    masks: Masks = {}
    with torch.no_grad():
        for number, sample in enumerate(samples):
            inputs[number] = model.model.embed_tokens(sample)
        positions = torch.arange(length)[None]
        rotary = model.model.rotary_emb(inputs[:1], positions)
        for index, block in enumerate(model.model.layers):
            sums = _run(block, inputs, outputs, len(samples), rotary)
            for name, linear in _linears(block).items():
                scores = linear.weight.abs() * sums[name].sqrt()
                order = torch.sort(scores, dim=1, stable=True).indices
                pruned = torch.zeros_like(scores, dtype=torch.bool)
                pruned.scatter_(1, order[:, : int(scores.shape[1] * sparsity)], True)
                linear.weight[pruned] = 0
                masks[f"model.layers.{index}.{name}"] = pruned
            _run(block, inputs, outputs, len(samples), rotary)
            inputs, outputs = outputs, inputs
    return masks


def server(
    folder: Path, masks: Sequence[Masks], sparsity: float, windows: Iterable[Tensor], out: Path
) -> float:
    """Prune by the votes of all masks, save the model, return its loss on some windows."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        for name in masks[0]:
            weight = model.get_submodule(name).weight
            votes = torch.stack([mask[name] for mask in masks]).sum(dim=0)
            order = torch.sort(votes.flatten(), descending=True).indices
            weight.view(-1)[order[: int(votes.numel() * sparsity)]] = 0
        losses = [float(model(w[None], labels=w[None]).loss) for w in windows]
    model.save_pretrained(out)
    return sum(losses) / len(losses)


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}


def _run(
    block: nn.Module,
    inputs: Tensor,
    outputs: Tensor,
    count: int,
    rotary: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Run a block on each sequence; return the mean squared inputs of its linear maps."""
    sums: dict[str, Tensor] = {}

    def record(name: str, seen: Tensor) -> None:
        squares = seen[0].float().square().sum(dim=0)
        sums[name] = sums.get(name, torch.zeros(())) + squares / (count * seen.shape[1])

    handles = [
        linear.register_forward_hook(lambda _m, args, _o, name=name: record(name, args[0]))
        for name, linear in _linears(block).items()
    ]
    for number in range(count):
        output = block(inputs[number][None], position_embeddings=rotary)
        outputs[number] = output[0] if isinstance(output, tuple) else output[0]
    for handle in handles:
        handle.remove()
    return sums
