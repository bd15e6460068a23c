"""`fedprune evaluate`: the perplexity of any model folder, measured as a run measures it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from fedprune.config import RunConfig, config_from_overrides
from fedprune.data.sources import load_documents
from fedprune.errors import ModelError
from fedprune.evaluation.perplexity import Perplexity, perplexity, token_windows
from fedprune.models.loading import check_seq_len, load_model
from fedprune.models.walk import Limits


def run_evaluation(model: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Print the perplexity of a model on held-out text and return the exit code 0.

    Parameters
    ----------
    model : str
        A Hugging Face folder, or a run's folder that holds one named ``model``.
    overrides : sequence of str
        Hydra overrides: `data`, `evaluation.seq_len`, ...
    as_json : bool
        Whether to print one JSON object instead of a sentence.

    Raises
    ------
    FedpruneError
        The folder, the configuration or the text is not usable.
    """
    folder = model_folder(model)
    config = config_from_overrides([f"model={folder}", *overrides])
    found = measure(config)
    if as_json:
        text = json.dumps(
            {
                "model": str(folder),
                "data": config.data.name,
                "perplexity": found.perplexity,
                "nll": found.nll,
                "windows": found.windows,
                "tokens": found.tokens,
                "seq-len": config.evaluation.seq_len,
            }
        )
    else:
        text = (
            f"perplexity {found.perplexity:.3f} on {config.data.name} "
            f"({found.windows} windows of {config.evaluation.seq_len} tokens, "
            f"{found.nll:.4f} nats per predicted token)"
        )
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
    return 0


def model_folder(model: str) -> Path:
    """Return the absolute folder of a model, looked for also in a run's folder.

    Raises
    ------
    ModelError
        If there is no ``config.json`` in either.
    """
    folder = Path(model).expanduser().absolute()
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelError(
        f"MODEL_DIR must be a Hugging Face model folder or a run's folder, found no `config.json` "
        f"in '{folder}' or '{folder / 'model'}'."
    )


def measure(config: RunConfig) -> Perplexity:
    """Return the perplexity of the configured model on the held-out part of its data."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(config.model)
    chosen = config.evaluation
    check_seq_len(loaded.model, chosen.seq_len, "evaluation.seq_len")
    documents = load_documents(config.data, "heldout")
    windows = token_windows(
        documents, loaded.tokenizer, chosen.seq_len, chosen.max_windows, config.data.joiner
    )
    limits = Limits.of(config.pruner, "evaluation.seq_len")
    return perplexity(loaded, windows, device, limits=limits)
