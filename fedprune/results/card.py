"""The card of a pruned model: where it comes from, how good it is, and what left the sites."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fedprune.config import RunConfig
from fedprune.models.folder import is_local

CARD = "README.md"

_log = logging.getLogger("flwr")
_COLUMNS = (
    ("dense", ("dense",)),
    ("this model", ("pruned",)),
    ("one client alone, mean", ("local_only", "mean")),
    ("all texts in one place", ("centralized",)),
)


def write_card(folder: Path, config: RunConfig, results: Mapping[str, Any]) -> None:
    """Write the card into a model's folder; a card that cannot be written is only warned of.

    Parameters
    ----------
    folder : Path
        The exported model.
    config : RunConfig
        The run's configuration; `card` is what the user says of the model.
    results : Mapping
        The content of `results.json`.
    """
    try:
        model_card(config, results).save(folder / CARD)
    except Exception as error:  # whatever happens here, the model is done and must not be lost
        _log.warning("the model's card could not be written: %s", error)


def model_card(config: RunConfig, results: Mapping[str, Any]) -> ModelCard:
    """Return the card of a run's model; parameters as :func:`write_card` has them."""
    data = ModelCardData(
        base_model=_base_model(config),
        license=config.card.license or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fedprune", "pruned", "sparse", "federated-learning", config.strategy.name],
        model_name=_title(config),
        eval_results=_eval_results(results) or None,
    )
    parts = (
        f"# {_title(config)}",
        _origin(config, results),
        "## How it was pruned\n\n" + _table(("", ""), _method(config, results)),
        "## Perplexity\n\n" + _perplexities(config, results),
        "## Data\n\n" + (config.card.data_description or "The clients' texts are not described."),
        "## What left the sites\n\n" + privacy_statement(config),
        "## Use\n\n" + _USE,
        "## Versions\n\n" + _versions(results),
    )
    return ModelCard("---\n" + data.to_yaml() + "\n---\n\n" + "\n\n".join(parts) + "\n")


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_ID")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_ID")
```

Zeros are stored as zeros; `fedprune/masks.safetensors` says which weights were pruned."""


def _base_name(config: RunConfig) -> str:
    """Return the base model's name: an id, or a folder's own name without where it lies."""
    if config.card.base_model or config.model.name == "demo":
        return config.card.base_model or "fedprune's embedded demo model"
    return Path(config.model.path).name if is_local(config.model.path) else config.model.path


def _base_model(config: RunConfig) -> str | None:
    """Return the base model's id on the Hub, None if it is not known."""
    if config.card.base_model or config.model.name == "demo":
        return config.card.base_model or None
    return None if is_local(config.model.path) else config.model.path


def _title(config: RunConfig) -> str:
    return f"{_base_name(config)}, pruned to {config.sparsity:.0%} zeros"


def _origin(config: RunConfig, results: Mapping[str, Any]) -> str:
    clients = len(results["clients"])
    by = "one client" if clients == 1 else f"{clients} clients together"
    return (
        f"{_base_name(config)}, pruned by {by} with fedprune; no client showed its texts. "
        f"The base model's weights have the SHA-256 `{results['model']['weights_hash']}`."
    )


def _method(config: RunConfig, results: Mapping[str, Any]) -> list[Sequence[str]]:
    sparsity = results["sparsity"]
    rows = {
        "strategy": _strategy(config),
        "pruner": config.pruner.name,
        "zeros among prunable weights": f"{sparsity['overall']:.2%} of {sparsity['weights']:,}",
        "pattern": str(config.pruner.pattern),
        "allocation over blocks": config.allocation.name,
        "schedule": config.schedule.name,
        "clients": str(len(results["clients"])),
        "calibration": f"{config.pruner.num_calibration_samples} samples of "
        f"{config.pruner.seq_len} tokens a client",
        "seed": str(config.seed),
    }
    return list(rows.items())


def _strategy(config: RunConfig) -> str:
    name, plugin = config.strategy.name, config.strategy.plugin
    return f"the plugin '{plugin}', with the clients of {name}" if plugin else name


def _perplexities(config: RunConfig, results: Mapping[str, Any]) -> str:
    rows = []
    for dataset, values in results["perplexity"].items():
        rows.append([dataset, *(_cell(_value(values, path)) for _, path in _COLUMNS)])
    if not rows:
        return "It was not measured."
    most = config.evaluation.max_windows
    first = f", the first {most} of each text" if most is not None else ""
    windows = (
        f"Windows of {config.evaluation.seq_len} tokens that do not overlap{first}; "
        "lower is better."
    )
    return _table(["held-out text", *(label for label, _ in _COLUMNS)], rows) + "\n\n" + windows


def _value(values: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = values
    for key in path:
        found = (found or {}).get(key)
    return found if isinstance(found, int | float) else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _versions(results: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in results["versions"].items())


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="perplexity",
            metric_value=round(values["pruned"], 4),
        )
        for dataset, values in results["perplexity"].items()
        if values["pruned"] is not None
    ]


_SENT = {
    "fedprllm": "which weights it would prune (masks, one bit a weight)",
    "fedspallm": "which weights it would keep (masks), and the values of those",
    "fedstats": "for each column of a matrix the sum of its squared inputs, and numbers of tokens",
    "fedhessian": "second moments of the matrices' inputs or sketches of them, and numbers of "
    "tokens",
}
_MASKS = (
    "A mask is as telling as the statistics it was made from: the norms of the inputs can be "
    "computed back from it to about three digits."
)
_TOLD = {
    "fedprllm": _MASKS,
    "fedspallm": f"{_MASKS} Values that pruning changed tell more of the inputs.",
    "fedstats": "The sums are exact statistics of each client's texts.",
    "fedhessian": "Second moments tell more than sums: they are to be treated like gradients.",
}
_WORDS = (
    "From the norms of the first block's inputs, words of a small calibration set can be "
    "recovered. The model itself is a function of all clients' texts."
)
_PUBLIC = (
    "Masks by magnitude follow from the public weights alone: neither they nor the model tell "
    "anything of the texts."
)
_END = (
    "Nothing of this is hidden from the server by encryption, or blurred by noise: there is no "
    "formal guarantee."
)


def privacy_statement(config: RunConfig) -> str:
    """Return what left the sites in a run and what it can reveal, for the strategy that was run.

    Parameters
    ----------
    config : RunConfig
        The run's configuration.
    """
    surveyed = config.allocation.name == "owl"
    sent = [_SENT[config.strategy.name]]
    if surveyed:
        sent.append("before that, sums of squared inputs of the dense model")
    if config.evaluation.local_only or config.evaluation.federated:
        sent.append("perplexities that it measured")
    sent.append("its name, numbers of samples and tokens, times, memory, versions and hashes")
    masks_only = config.strategy.name in ("fedprllm", "fedspallm") and not surveyed
    if config.pruner.name == "magnitude" and masks_only:
        told = _PUBLIC
    else:
        told = f"{_TOLD[config.strategy.name]} {_WORDS}"
    left = f"Each client sent the server: {'; '.join(sent)}."
    return f"{left} No text, token, hidden state or gradient left a client. {told} {_END}"
