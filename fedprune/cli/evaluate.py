"""`fedprune evaluate`: what a model folder is worth, measured as a run measures it."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.config import RunConfig, config_from_overrides, evaluation_data, to_overrides
from fedprune.errors import DataError, FedpruneError, ModelError
from fedprune.evaluation.perplexity import Perplexity, heldout_windows, perplexities
from fedprune.evaluation.sizes import ModelSizes, model_sizes
from fedprune.evaluation.speed import Speed, measure_speed
from fedprune.evaluation.zero_shot import ZeroShot, load_tasks, task_names, zero_shot
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import check_seq_len, load_model
from fedprune.results.read import read_config
from fedprune.results.text import size_text

_WINDOWS = ("evaluation.datasets=", "evaluation.seq_len=", "evaluation.max_windows=")


@dataclass(frozen=True)
class Findings:
    """What was measured of a model folder.

    Attributes
    ----------
    folder : Path
        The model.
    seq_len : int
        Tokens of a window.
    sizes : ModelSizes
        Bytes of its files.
    perplexities : Mapping[str, Perplexity]
        By data set.
    missing : Mapping[str, str]
        Data set -> why it could not be had.
    tasks : ZeroShot or None
        Where asked for.
    speed : Speed or None
        Where asked for.
    """

    folder: Path
    seq_len: int
    sizes: ModelSizes
    perplexities: Mapping[str, Perplexity]
    missing: Mapping[str, str] = field(default_factory=dict)
    tasks: ZeroShot | None = None
    speed: Speed | None = None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain JSON values."""
        return {
            "model": str(self.folder),
            "seq_len": self.seq_len,
            "sizes": self.sizes.to_dict(),
            "perplexity": {label: _plain(found) for label, found in self.perplexities.items()},
            "missing": dict(self.missing),
            "zero_shot": None if self.tasks is None else self.tasks.to_dict(),
            "speed": None if self.speed is None else self.speed.to_dict(),
        }


def _plain(found: Perplexity) -> dict[str, float | str | None]:
    """Return a perplexity as JSON has it, which knows no infinity; a reason where there is one."""
    figures = {key: value for key, value in asdict(found).items() if value != ""}
    return {
        key: value if isinstance(value, str) or math.isfinite(value) else None
        for key, value in figures.items()
    }


def run_evaluation(
    model: str, overrides: Sequence[str], *, as_json: bool = False, speed: bool = False
) -> int:
    """Print what a model folder is worth and return the exit code, 1 if a figure is missing.

    Parameters
    ----------
    model : str
        A Hugging Face folder, or a run's folder that holds one named ``model``; a run's model is
        measured on the run's data sets and windows.
    overrides : sequence of str
        Hydra overrides of those: `data`, `evaluation.datasets`, `evaluation.tasks`, ...
    as_json : bool
        Whether to print one JSON object instead of sentences.
    speed : bool
        Whether to time the model, too.

    Raises
    ------
    FedpruneError
        The folder, the configuration or a task is not usable.
    """
    folder = model_folder(model)
    chosen = [f"model={folder}", *_of_its_run(folder, overrides), *overrides]
    found = measure(folder, config_from_overrides(chosen), speed)
    text = json.dumps(found.to_dict()) if as_json else "\n".join(_sentences(found))
    say(Console(), text)
    for label, problem in found.missing.items():
        sys.stderr.write(f"fedprune evaluate: not measured on '{label}': {problem}\n")
    odd = {label: one.reason for label, one in found.perplexities.items() if one.reason}
    for label, reason in odd.items():
        sys.stderr.write(f"fedprune evaluate: no number on '{label}': {reason}\n")
    return 1 if found.missing or odd else 0


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
        f"in '{folder}' or '{folder / 'model'}'. A sweep keeps its models with --keep-models."
    )


def _of_its_run(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the texts and windows of the run that made a model, so that figures compare.

    None where no run did, or one of another version; other texts that are asked for go before.
    """
    try:
        config = read_config(folder.parent)
    except FedpruneError:
        return []
    other = any(text.startswith("data=") for text in overrides)
    keys = _WINDOWS if other else ("data.", *_WINDOWS)
    return [text for text in to_overrides(config) if text.startswith(keys)]


def measure(folder: Path, config: RunConfig, speed: bool = False) -> Findings:
    """Measure a model folder; what may be missing is looked for before the long work.

    Parameters
    ----------
    folder : Path
        The model.
    config : RunConfig
        Names the same model, `data`, `evaluation` and the device.
    speed : bool
        Whether to time it, too.

    Raises
    ------
    FedpruneError
        If the model or a task is not usable.
    """
    names = task_names(config.evaluation.tasks)
    tasks = load_tasks(names) if names else {}
    device = pick_device(config.pruner.device)
    loaded = load_model(config.model)
    chosen = config.evaluation
    check_seq_len(loaded.model, chosen.seq_len, "evaluation.seq_len")
    windows, missing = {}, {}
    for label, data in evaluation_data(config).items():
        try:
            windows[label] = heldout_windows(chosen, data, loaded.tokenizer)
        except DataError as error:
            missing[label] = str(error)
    limits = Limits.of(config.pruner, "evaluation.seq_len")
    return Findings(
        folder,
        chosen.seq_len,
        model_sizes(folder),
        perplexities(loaded, windows, device, limits=limits) if windows else {},
        missing,
        zero_shot(str(folder), tasks, str(device), dtype=config.model.dtype) if tasks else None,
        measure_speed(folder, device, chosen.seq_len) if speed else None,
    )


def _sentences(found: Findings) -> Iterator[str]:
    for label, one in found.perplexities.items():
        yield (
            f"perplexity {one.perplexity:.3f} on {label} ({one.windows} windows of "
            f"{found.seq_len} tokens, {one.nll:.4f} nats per predicted token)"
        )
    if found.tasks is not None:
        yield from _task_sentences(found.tasks)
    yield _size_sentence(found.sizes)
    if found.speed is not None:
        yield from _speed_sentences(found.speed)


def _task_sentences(found: ZeroShot) -> Iterator[str]:
    for name, metrics in found.tasks.items():
        figures = [
            f"{metric} {value:.4f}" + (f" ± {metrics[error]:.4f}" if error in metrics else "")
            for metric, value in metrics.items()
            if not metric.endswith("_stderr") and (error := f"{metric}_stderr")
        ]
        yield f"{name}: {', '.join(figures)}"
    mean = "" if found.mean is None else f"mean accuracy {found.mean:.4f}, "
    yield f"{mean}lm-evaluation-harness {found.harness}, no examples in the prompt"


def _size_sentence(sizes: ModelSizes) -> str:
    forms = {
        "zeros written out": sizes.dense,
        "masks": sizes.masks,
        "masks and surviving values by count": sizes.bits_and_values,
    }
    found = [f"{size_text(size)} {form}" for form, size in forms.items() if size is not None]
    return f"weights: {', '.join(found)}"


def _speed_sentences(speed: Speed) -> Iterator[str]:
    yield (
        f"{speed.device}, {speed.dtype}, {speed.tokens} tokens a pass: "
        f"{speed.dense:,.0f} tokens/s without zeros, {speed.pruned:,.0f} with zeros multiplied"
        + ("" if speed.sparse is None else f", {speed.sparse:,.0f} with 2:4 kernels")
    )
    for linear in speed.linears:
        rows, columns = linear.shape
        sparse = linear.sparse_seconds
        yield (
            f"  {linear.name} ({rows}x{columns}): {1e6 * linear.dense_seconds:,.0f} us dense"
            + ("" if sparse is None else f", {1e6 * sparse:,.0f} us with 2:4 kernels")
        )
    if speed.why_not_sparse:
        yield f"2:4 is not measured: {speed.why_not_sparse}."
