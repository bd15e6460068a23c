"""Train a small Llama, Qwen3, OPT or Mixtral on several domains of text, to measure pruning.

Run it from the repository root, once an architecture (about 40 minutes on one core each)::

    python scripts/train_domain_model.py /texts /models/domains-llama --minutes 40
    python scripts/train_domain_model.py /texts /models/domains-opt --architecture opt --minutes 30
    python scripts/train_domain_model.py /texts /models/domains-qwen --architecture qwen3 --blocks 4
    python scripts/train_domain_model.py /texts /models/domains-moe --architecture mixtral
    python scripts/train_domain_model.py /texts /models/other --seed 1 --blocks 4 --hidden 256

Every folder below the first argument that holds a ``train.txt`` is a domain; each contributes the
same number of windows to a batch, whatever its size. Nothing is selected on other texts: the last
weights are kept, in an ordinary Hugging Face folder.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

sys.path.insert(0, str(Path(__file__).parent))
from train_demo_model import (  # noqa: E402 - a neighbour, not a package
    END,
    encode,
    next_token_loss,
    perplexity,
    train,
    train_tokenizer,
)

VOCABULARY = 2048
CONTEXT = 512
WINDOW = 256
BATCH = 16
VALIDATION_SHARE = 0.01
BALANCE = 0.01  # how much it costs a router to prefer experts; with none some are never used
REPORT_EVERY_S = 120.0


def main() -> None:
    """Train, report the perplexity of every domain and write the model."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    texts = {
        path.parent.name: path.read_text(encoding="utf-8")
        for path in sorted(arguments.texts.glob("*/train.txt"))
    }
    # The same amount of every domain, so that none of them makes the vocabulary.
    shortest = min(map(len, texts.values()))
    tokenizer = train_tokenizer((text[:shortest] for text in texts.values()), VOCABULARY, CONTEXT)
    used, validation = {}, {}
    for name, text in texts.items():
        ids = encode(tokenizer, (part for part in text.split(END) if part.strip()))
        cut = int(len(ids) * (1 - VALIDATION_SHARE))
        used[name], validation[name] = ids[:cut], ids[cut:]
    model = build_model(arguments)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {sum(map(len, used.values())):,} tokens", flush=True)
    fit(model, used, validation, arguments)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(scores(model, validation), flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--architecture", choices=("llama", "qwen3", "opt", "mixtral"), default="llama"
    )
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def build_model(arguments: argparse.Namespace) -> nn.Module:
    """Return an untrained model, by default of about 3 M parameters that are used for a token."""
    hidden = arguments.hidden
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": arguments.blocks,
        "num_attention_heads": hidden // 32,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    grouped = {"intermediate_size": hidden * 8 // 3, "num_key_value_heads": hidden // 64}
    experts = {"intermediate_size": hidden * 4 // 3, "num_local_experts": 8}
    own = {
        "llama": grouped,
        "qwen3": grouped | {"head_dim": 32},
        "opt": {"ffn_dim": hidden * 4, "word_embed_proj_dim": hidden, "dropout": 0.0},
        "mixtral": grouped | experts | {"num_experts_per_tok": 2},
    }
    values = shared | own[arguments.architecture]
    config = AutoConfig.for_model(arguments.architecture, **values)
    return AutoModelForCausalLM.from_config(config)


def fit(
    model: nn.Module,
    used: dict[str, Tensor],
    validation: dict[str, Tensor],
    arguments: argparse.Namespace,
) -> None:
    """Train on random windows, equally many of each domain, until the minutes are over."""
    generator, reported = torch.Generator().manual_seed(arguments.seed), 0.0
    loss_of = routed_loss if arguments.architecture == "mixtral" else next_token_loss
    factor = 0.5 if arguments.architecture == "opt" else 1.0

    def loss(step: int) -> Tensor:
        return loss_of(model, batch(used, generator, step))

    for _, minutes, shown in train(model, loss, arguments.minutes, factor=factor):
        if minutes - reported > REPORT_EVERY_S / 60:
            reported = minutes
            print(f"{shown}\n  {scores(model, validation)}", flush=True)


def routed_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the loss of predicting each token, and what unequal use of experts costs."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids=windows, use_cache=False, output_router_logits=True)
    logits = output.logits[:, :-1].float().flatten(0, 1)
    balance = load_balancing_loss_func(
        tuple(one.float() for one in output.router_logits),
        model.config.num_local_experts,
        model.config.num_experts_per_tok,
    )
    return nn.functional.cross_entropy(logits, windows[:, 1:].flatten()) + BALANCE * balance


def batch(used: dict[str, Tensor], generator: torch.Generator, step: int) -> Tensor:
    """Return random windows, shape (BATCH, WINDOW); domains take turns."""
    names = list(used)
    chosen = [names[(step * BATCH + place) % len(names)] for place in range(BATCH)]
    rows = []
    for name in chosen:
        start = int(torch.randint(len(used[name]) - WINDOW + 1, (1,), generator=generator))
        rows.append(used[name][start : start + WINDOW])
    return torch.stack(rows)


def scores(model: nn.Module, validation: dict[str, Tensor]) -> dict[str, float]:
    """Return the perplexity of each domain's validation part."""
    return {name: round(perplexity(model, ids, WINDOW), 2) for name, ids in validation.items()}


if __name__ == "__main__":
    main()
