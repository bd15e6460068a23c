"""Train the small model that ships with fedprune, on the documentation inside Python itself.

Run it from the repository root (about 40 minutes on one CPU core with AVX512-BF16)::

    python scripts/train_demo_model.py --minutes 40 --threads 1

It writes JSON files only, because only text files travel inside a Flower app bundle. The held-out
split is read once, after training; the perplexity shown on the way is of a slice of the train
split that is never trained on. Nothing is selected on either: the last weights are the ones kept.
With `--minutes` the number of steps depends on the machine; `--steps` alone is repeatable, as long
as `--minutes` is large enough not to end it.
"""

import argparse
import base64
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedprune.data.documents import Document
from fedprune.data.stdlib import stdlib_documents

END = "<|endoftext|>"
VOCABULARY = 1024
CONTEXT = 512
WINDOW = 256
BATCH = 16
VALIDATION_PER_MILLE = 30
DROPOUT = 0.1
WEIGHT_DECAY = 0.1
PEAK_RATE = 3e-3
WARM_UP = 0.03
REPORT_EVERY_S = 60.0
SAVE_EVERY_S = 300.0


@dataclass(frozen=True)
class Corpus:
    """Token ids of each split, documents joined by the end-of-text token."""

    train: Tensor
    validation: Tensor
    heldout: Tensor


def main() -> None:
    """Train, measure and write the checkpoint."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer((d.text for d in stdlib_documents("train")), VOCABULARY, CONTEXT)
    corpus = build_corpus(tokenizer)
    model = build_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(corpus.train):,} training tokens", flush=True)

    def save() -> None:
        if arguments.backup is not None:
            model.save_pretrained(arguments.backup)

    steps, minutes = fit(model, corpus, arguments, save)
    for parameter in model.parameters():  # what is shipped is what is measured
        parameter.data = parameter.data.half().float()
    report = {
        "seed": arguments.seed,
        "steps": steps,
        "minutes": round(minutes, 1),
        "parameters": parameters,
        "tokens": {name: len(getattr(corpus, name)) for name in ("train", "validation", "heldout")},
        "tokens_seen": steps * BATCH * WINDOW,
        "unigram_perplexity": round(unigram_perplexity(corpus.train, corpus.heldout), 3),
        "heldout_perplexity": {
            str(n): round(perplexity(model, corpus.heldout, n), 3) for n in (128, 256)
        },
        "versions": {
            "python": platform.python_version(),
            **{part.__name__: part.__version__ for part in (torch, transformers, tokenizers)},
        },
    }
    export(model, tokenizer, report, arguments.out)
    print(json.dumps(report, indent=1), flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments; training ends at `--steps` or `--minutes`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000_000)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fedprune/models/demo"))
    parser.add_argument("--backup", type=Path, help="folder for a copy every five minutes")
    return parser.parse_args()


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on texts: it knows every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def build_corpus(tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """Return the token ids of all splits; validation is cut from train by a hash of the key."""
    documents = stdlib_documents("train")

    def apart(document: Document) -> bool:
        digest = hashlib.sha256(f"validation:{document.key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % 1000 < VALIDATION_PER_MILLE

    return Corpus(
        train=encode(tokenizer, (d.text for d in documents if not apart(d))),
        validation=encode(tokenizer, (d.text for d in documents if apart(d))),
        heldout=encode(tokenizer, (d.text for d in stdlib_documents("heldout"))),
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Tensor:
    """Return the ids of texts, the end-of-text token after each."""
    flat: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch([*texts]):
        flat += [*encoding.ids, tokenizer.eos_token_id]
    return torch.tensor(flat)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of 1.2 M parameters whose every width divides by four (2:4)."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.0,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def fit(
    model: LlamaForCausalLM, corpus: Corpus, arguments: argparse.Namespace, save: Callable[[], None]
) -> tuple[int, float]:
    """Train on random windows, with dropout; return steps and minutes."""
    generator = torch.Generator().manual_seed(arguments.seed)
    hooks = [
        part.register_forward_hook(drop)
        for layer in model.model.layers
        for part in (layer.self_attn.o_proj, layer.mlp)
    ]
    step, minutes, reported, saved = 0, 0.0, 0.0, 0.0

    def loss(_step: int) -> Tensor:
        return next_token_loss(model, windows(corpus.train, generator))

    for ended in train(model, loss, arguments.minutes, arguments.steps):
        step, minutes, shown = ended
        if minutes - reported > REPORT_EVERY_S / 60:
            reported = minutes
            validation = perplexity(model, corpus.validation, WINDOW)
            print(f"{shown}, validation {validation:.2f}", flush=True)
        if minutes - saved > SAVE_EVERY_S / 60:
            saved = minutes
            save()
    for hook in hooks:
        hook.remove()
    save()
    return step, minutes


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    minutes: float,
    steps: float = math.inf,
    factor: float = 1.0,
) -> Iterator[tuple[int, float, str]]:
    """Train with AdamW, warm-up and cosine; yield steps, minutes so far and what to say of them.

    `loss_of`: gives a step, counted from 0, its loss. `factor`: of the usual learning rate. It ends
    after so many minutes or steps.
    """
    optimizer = build_optimizer(model)
    started, step, passed, running = time.monotonic(), 0, 0.0, 0.0
    model.train()
    while (progress := max(step / steps, passed / minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = factor * rate(progress)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        passed = (time.monotonic() - started) / 60
        yield step, passed, f"{passed:5.1f} min, step {step}, train {math.exp(running):.2f}"


def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Apply dropout to what a sub-layer adds to the residual stream, while training."""
    return nn.functional.dropout(output, DROPOUT, training=module.training)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def rate(progress: float) -> float:
    """Return the learning rate after this share of the training, 0 to 1."""
    if progress < WARM_UP:
        return PEAK_RATE * max(progress, 1e-3) / WARM_UP
    share = (progress - WARM_UP) / (1 - WARM_UP)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def windows(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Return a batch of random windows, shape (BATCH, WINDOW)."""
    starts = torch.randint(len(tokens) - WINDOW + 1, (BATCH,), generator=generator)
    return torch.stack([tokens[start : start + WINDOW] for start in starts.tolist()])


def next_token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Return the mean loss of predicting each token from those before it, in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: Tensor, length: int) -> float:
    """Return the perplexity over all whole, disjoint windows of this length, in float32."""
    training = model.training
    model.eval()
    count = len(tokens) // length
    total = 0.0
    for batch in tokens[: count * length].view(count, length).split(32):
        logits = model(input_ids=batch, use_cache=False).logits
        total += nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        ).item()
    model.train(training)
    return math.exp(total / (count * (length - 1)))


def unigram_perplexity(train: Tensor, heldout: Tensor) -> float:
    """Return the held-out perplexity of token frequencies alone (train counts, plus one)."""
    counts = torch.bincount(train, minlength=VOCABULARY).double() + 1
    return math.exp(-(counts / counts.sum()).log()[heldout].mean().item())


def export(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    report: dict[str, object],
    folder: Path,
) -> None:
    """Write config, tokenizer, float16 weights and the report as JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256()
    tensors = {}
    for name, parameter in sorted(model.named_parameters()):  # a tied head is listed once
        data = parameter.detach().numpy().astype(np.dtype("<f2")).tobytes()
        digest.update(f"{name} {list(parameter.shape)}".encode() + data)
        tensors[name] = {
            "dtype": "float16",
            "shape": list(parameter.shape),
            "data": base64.b64encode(data).decode(),
        }
    weights = {"format": "fedprune-weights-1", "sha256": digest.hexdigest(), "tensors": tensors}
    (folder / "weights.json").write_text(json.dumps(weights, indent=0) + "\n")
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
