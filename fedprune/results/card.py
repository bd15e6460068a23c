"""The card of a pruned model: where it comes from, how good it is, and what left the sites."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fedprune.config import RunConfig, allocation_of
from fedprune.config.allocation import SURVEYED
from fedprune.models.folder import is_local
from fedprune.results.perplexity import (
    DENSE,
    FEDERATED,
    MODELS,
    NO_CLIENT,
    fidelity_table,
    perplexity_at,
)
from fedprune.results.text import figure, markdown_table, size, size_change
from fedprune.results.words import (
    guarantee_sentences,
    left_as_stored,
    left_dense,
    loading_code,
    secure_sentences,
)

CARD = "README.md"

_log = logging.getLogger("flwr")
_COLUMNS = (DENSE, FEDERATED, "local_only.mean", "centralized")
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


def write_card(folder: Path, config: RunConfig, results: Mapping[str, Any]) -> None:
    """Write the card into a model's folder; a card that cannot be written is only warned of."""
    try:
        model_card(config, results).save(folder / CARD)
    except Exception as error:  # whatever happens here, the model is done and must not be lost
        _log.warning("the model's card could not be written: %s", error)


def model_card(config: RunConfig, results: Mapping[str, Any]) -> ModelCard:
    """Return the card of a run's model, of its configuration and the content of `results.json`."""
    sees = "Image" in results["model"].get("loads_with", "")
    form = [] if results.get("smaller") else ["sparse"]
    data = ModelCardData(
        base_model=_base_model(config),
        license=config.card.license or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["fedprune", "pruned", *form, "federated-learning", config.strategy.name],
        model_name=_title(config, results),
        eval_results=_eval_results(results) or None,
    )
    parts = (
        f"# {_title(config, results)}",
        _origin(config, results),
        "## How it was pruned\n\n" + markdown_table(("", ""), _method(config, results)),
        *_removed(results),
        "## Perplexity\n\n" + _perplexities(config, results) + _fidelity(results),
        "## What it takes\n\n" + _takes(results),
        "## Data\n\n" + (config.card.data_description or "The clients' texts are not described."),
        "## What left the sites\n\n" + privacy_statement(config, results),
        "## Use\n\n" + _use(results),
        "## Versions\n\n" + ", ".join(" ".join(pair) for pair in results["versions"].items()),
    )
    return ModelCard("---\n" + data.to_yaml() + "\n---\n\n" + "\n\n".join(parts) + "\n")


def _use(results: Mapping[str, Any]) -> str:
    code = f"```python\n{loading_code(results, 'FOLDER_OR_ID')}\n```"
    return code if results.get("smaller") else f"{code}\n\n{_ZEROS}"


_ZEROS = "Zeros are stored as zeros; `fedprune/masks.safetensors` says which weights were pruned."


def _removed(results: Mapping[str, Any]) -> list[str]:
    """Return what went where, if units did."""
    smaller = results.get("smaller") or {}
    if not smaller.get("rows"):
        return []
    return ["## What was removed\n\n" + markdown_table(smaller["header"], smaller["rows"])]


def _base_name(config: RunConfig) -> str:
    """Return the base model's name: an id, or a folder's own name without where it lies."""
    demo, folder = config.model.name == "demo", Path(config.model.path).name
    return _base_model(config) or ("fedprune's embedded demo model" if demo else folder)


def _base_model(config: RunConfig) -> str | None:
    """Return the base model's id on the Hub, None if it is not known."""
    local = config.model.name == "demo" or is_local(config.model.path)
    return config.card.base_model or (None if local else config.model.path)


def _title(config: RunConfig, results: Mapping[str, Any]) -> str:
    smaller = results.get("smaller")
    became = smaller["summary"] if smaller else f"pruned to {config.sparsity:.0%} zeros"
    return f"{_base_name(config)}, {became}"


def _origin(config: RunConfig, results: Mapping[str, Any]) -> str:
    clients = len(results["clients"])
    by = "one client" if clients == 1 else f"{clients} clients together"
    return (
        f"{_base_name(config)}, pruned by {by} with fedprune; no client showed its texts. "
        f"The base model's weights have the SHA-256 `{results['model']['weights_hash']}`."
    )


def _untouched(results: Mapping[str, Any]) -> dict[str, str]:
    """Return rows on what was not considered, and on experts that hardly a token reached."""
    rows, covered, experts = {}, results.get("coverage"), results.get("experts")
    if covered and covered["dense"]:
        share = f"{covered['share']:.2%} of the blocks' matrices"
        rows["matrices that stay dense"] = f"{', '.join(left_dense(covered))} ({share})"
    if experts and experts["few"] is not None:
        rows[f"experts that saw fewer than {experts['few_tokens']} tokens"] = (
            f"{experts['few']} of {experts['experts']}, {experts['unseen']} of them none"
        )
    elif experts:
        rows["experts that saw no token"] = f"{experts['unseen']} of {experts['experts']}"
    return rows


def _method(config: RunConfig, results: Mapping[str, Any]) -> list[Sequence[str]]:
    sparsity = results["sparsity"]
    made = {
        "pruner": config.pruner.name,
        "zeros among prunable weights": f"{sparsity['overall']:.2%} of {sparsity['weights']:,}",
        "pattern": str(config.pruner.pattern),
        "allocation of zeros": config.allocation.name,
        "schedule": config.schedule.name,
    }
    if results.get("smaller"):
        options = config.strategy.own_options()
        made = {
            "what went": results["smaller"]["summary"],
            "what remains": size_change(results),
            **{key: str(value) for key, value in options.items()},
        }
    rows = {
        "strategy": config.strategy.name,
        **made,
        **_untouched(results),
        **{key: value for key in ("targets", "ignore") if (value := getattr(config.pruner, key))},
        "clients": str(len(results["clients"])),
        "calibration": f"{config.pruner.num_calibration_samples} samples of "
        f"{config.pruner.seq_len} tokens a client",
        "seed": str(config.seed),
    }
    left = left_as_stored(results)
    if left:
        rows["pruned part"] = str(results["model"]["blocks"])
        rows["left as it was, with its weights"] = left
    return list(rows.items())


def _perplexities(config: RunConfig, results: Mapping[str, Any]) -> str:
    measured = results["perplexity"]
    columns = list(_COLUMNS)
    if any(perplexity_at(values, NO_CLIENT) is not None for values in measured.values()):
        columns.insert(1, NO_CLIENT)
    rows = [
        [dataset, *(figure(perplexity_at(values, path)) for path in columns)]
        for dataset, values in measured.items()
    ]
    if not rows:
        return "It was not measured."
    most = config.evaluation.max_windows
    first = f", the first {most} of each text" if most is not None else ""
    table = markdown_table(["held-out text", *(MODELS[path] for path in columns)], rows)
    windows = f"Windows of {config.evaluation.seq_len} tokens that do not overlap{first}"
    return (
        f"{table}\n{windows}; lower is better. This model is the {MODELS[FEDERATED]} one; "
        f"{MODELS['centralized']} is what all texts in one place would give."
    )


def _fidelity(results: Mapping[str, Any]) -> str:
    """Return how close the models stay to the base model, if it was measured."""
    if not results.get("fidelity"):
        return ""
    return f"\n\n{markdown_table(*fidelity_table(results['fidelity']))}\n{_CLOSE}"


_CLOSE = (
    "KL is the mean divergence of the next token's distribution from the base model's, in nats; "
    "beside it the share of tokens for which both find the same token most likely."
)


def _takes(results: Mapping[str, Any]) -> str:
    """Return bytes on disk, and speed and memory if they were measured."""
    sizes, speed = results.get("sizes") or {}, results.get("speed") or {}
    parts = []
    if "base" in sizes and "dense" in sizes:
        share = sizes["dense"] / sizes["base"]
        parts.append(f"Its weights take {size(sizes['dense'])}, {share:.0%} of the base model's.")
    if speed:
        own = speed["pruned"]
        parts.append(
            "Measured side by side on one machine, one sequence at a time, it reads "
            f"{own['prompt_ratio']:.2f} and writes {own['generation_ratio']:.2f} times as many "
            f"tokens a second as the base model, at a peak of {size(own['peak_bytes'])} beside "
            f"{size(speed['dense']['peak_bytes'])} of memory."
        )
    return " ".join(parts) or "It was not measured."


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


def privacy_statement(config: RunConfig, results: Mapping[str, Any]) -> str:
    """Return what left the sites in a run and what it can reveal, in the words of its method."""
    surveyed, words = allocation_of(config) in SURVEYED, results["strategy"]
    sent = [words["sends"]]
    if surveyed:
        sent.append("before that, sums of squared inputs of the dense model")
    fitted = config.reconstruct.name != "none"
    if fitted:
        sent.append("which way its texts move every block's survivors: sums of gradients")
    if config.evaluation.local_only or config.evaluation.federated:
        sent.append("perplexities that it measured")
    sent.append("its name, numbers of samples and tokens, times, memory, versions and hashes")
    # There is agreement where clients sent masks.
    public = (
        config.pruner.name == "magnitude" and results["agreement"] and not surveyed and not fitted
    )
    told = f"{words['tells']} {_WORDS} {_END}"
    if public:
        told = f"{_PUBLIC} {_END}"
    elif "privacy" in words:
        told = guarantee_sentences(words["privacy"])
    left = f"Each client sent the server: {'; '.join(sent)}."
    if "secure" in words:
        left = f"{left} {secure_sentences(words['secure'])}"
    never = "text, token or hidden state" if fitted else "text, token, hidden state or gradient"
    return f"{left} No {never} left a client. {told}"
