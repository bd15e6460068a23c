"""`fedprune evaluate`: what model folders are worth, measured as a run measures it."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, geometric_mean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedprune.cli.screen import say
from fedprune.config import RunConfig, config_from_overrides, evaluation_data, to_overrides
from fedprune.errors import DataError, FedpruneError, ModelError
from fedprune.evaluation.perplexity import (
    LastStates,
    Perplexity,
    heldout_windows,
    last_states,
    perplexity_of,
    scores,
)
from fedprune.evaluation.sizes import ModelSizes, model_sizes
from fedprune.evaluation.speed import Speed, measure_speed
from fedprune.evaluation.throughput import Throughput, compare_throughput
from fedprune.evaluation.zero_shot import ZeroShot, load_tasks, task_names, zero_shot
from fedprune.models.architecture import read_config
from fedprune.models.device import Limits, pick_device
from fedprune.models.embedded import demo_model_path
from fedprune.models.loading import check_seq_len, load_model
from fedprune.results.read import read_config as configuration_of
from fedprune.results.tables import text_table
from fedprune.results.text import NONE, figure, size_text

_WINDOWS = ("evaluation.datasets=", "evaluation.seq_len=", "evaluation.max_windows=")


@dataclass(frozen=True)
class Findings:
    """What was measured of a model folder."""

    folder: Path
    seq_len: int
    sizes: ModelSizes  # bytes of its files
    # by data set; of several models that are evaluated together, all but the first have their
    # agreement with the first
    perplexities: Mapping[str, Perplexity]
    missing: Mapping[str, str] = field(default_factory=dict)  # data set -> why it could not be had
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
            "speed": None if self.speed is None else asdict(self.speed),
        }


def _plain(found: Perplexity) -> dict[str, float | str | None]:
    """Return a perplexity as JSON has it, which knows no infinity; without what is unknown."""
    figures = {key: value for key, value in asdict(found).items() if value not in ("", None)}
    return {
        key: value if isinstance(value, str) or math.isfinite(value) else None
        for key, value in figures.items()
    }


def run_evaluation(
    model: str, others: Sequence[str], *, tasks: str, as_json: bool, speed: bool
) -> int:
    """Print what model folders are worth and return the exit code, 1 if a figure is missing.

    `others`: more models, and Hydra overrides of the texts. All are measured on the same texts, by
    default those of the first that a run made, and each is held against the first. `speed`: whether
    to time them: one model as it is and with 2:4 kernels, several side by side.
    """
    # A folder of a sweep has "=" in its name, too.
    more = [text for text in others if "=" not in text or Path(text).is_dir()]
    overrides = [text for text in others if text not in more]
    overrides += [f"evaluation.tasks={tasks}"] if tasks else []
    folders = [model_folder(one) for one in (model, *more)]
    if speed and len(folders) == 1:
        _refuse_quantized(folders[0])
    chosen = [*_of_a_run(folders, overrides), *overrides]
    beside = Beside() if len(folders) > 1 else None
    found: list[Findings] = []
    for folder in folders:
        config = config_from_overrides([f"model={folder}", *chosen])
        found.append(measure(folder, config, speed and beside is None, beside))
    served: list[Throughput] = []
    if speed and beside is not None:
        device = pick_device(config.pruner.device)
        served = compare_throughput(folders, device, config.evaluation.seq_len)
    if len(found) == 1:
        text = json.dumps(found[0].to_dict()) if as_json else "\n".join(_sentences(found[0]))
        say(Console(), text)
    elif as_json:
        speeds = [asdict(one) for one in served]
        say(Console(), json.dumps({"models": [one.to_dict() for one in found], "speed": speeds}))
    else:
        Console().print(_comparison(found, served))
    return max(map(_told_of_what_is_missing, found))


def _refuse_quantized(folder: Path) -> None:
    """Refuse to time alone what has no zeros to leave out."""
    if getattr(read_config(str(folder), None, quantized=True), "quantization_config", None):
        raise ModelError(
            f"`--speed` of one model times its zeros, and '{folder}' is quantised. Time it beside "
            f"the dense model: fedprune evaluate DENSE {folder} --speed"
        )


def _told_of_what_is_missing(found: Findings) -> int:
    """Tell what could not be measured of a model; return 1 if there is such a thing."""
    for label, problem in found.missing.items():
        sys.stderr.write(f"fedprune evaluate: not measured on '{label}': {problem}\n")
    odd = {label: one.reason for label, one in found.perplexities.items() if one.reason}
    for label, reason in odd.items():
        sys.stderr.write(f"fedprune evaluate: no number on '{label}': {reason}\n")
    return 1 if found.missing or odd else 0


def model_folder(model: str) -> Path:
    """Return the absolute folder of a model, looked for also in a run's folder.

    Raises ModelError if there is no ``config.json`` in either.
    """
    if model == "demo":
        return demo_model_path()
    folder = Path(model).expanduser().absolute()
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelError(
        "MODEL_DIR must be a Hugging Face model folder, a run's folder or 'demo', found no "
        f"`config.json` in '{folder}' or '{folder / 'model'}'. "
        "A sweep keeps its models with --keep-models."
    )


def _of_a_run(folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    """Return the texts and windows of the first run among models, so that figures compare.

    None where no run made any, or one of another version; other texts that are asked for go before.
    """
    for folder in folders:
        try:
            config = configuration_of(folder.parent)
        except FedpruneError:
            continue
        other = any(text.startswith("data=") for text in overrides)
        keys = _WINDOWS if other else ("data.", *_WINDOWS)
        return [text for text in to_overrides(config) if text.startswith(keys)]
    return []


@dataclass
class Beside:
    """What the first of several models makes of the texts, for the others to be held against."""

    windows: Mapping[str, Tensor] = field(default_factory=dict)
    states: LastStates | None = None

    def against(self, windows: Mapping[str, Tensor], states: LastStates) -> LastStates | None:
        """Return the first model's states; None of the first itself, and of another tokenizer."""
        if self.states is None:
            self.windows, self.states = windows, states
            return None
        same = self.windows.keys() == windows.keys() and all(
            torch.equal(self.windows[label], found) for label, found in windows.items()
        )
        return self.states if same else None


def measure(
    folder: Path,
    config: RunConfig,
    speed: bool = False,
    beside: Beside | None = None,
) -> Findings:
    """Measure a model folder; what may be missing is looked for before the long work.

    `config`: names the same model, `data`, `evaluation` and the device. `beside`: shared by models
    that are held against the first of them. Raises FedpruneError if the model or a task is not
    usable.
    """
    names = task_names(config.evaluation.tasks)
    tasks = load_tasks(names) if names else {}
    device = pick_device(config.pruner.device)
    loaded = load_model(config.model, quantized=True)
    chosen = config.evaluation
    check_seq_len(loaded.model, chosen.seq_len, "evaluation.seq_len")
    windows, missing = {}, {}
    for label, data in evaluation_data(config).items():
        try:
            windows[label] = heldout_windows(chosen, data, loaded.tokenizer)
        except DataError as error:
            missing[label] = str(error)
    limits = Limits.of(config.pruner, "evaluation.seq_len")
    scored: Mapping[str, Perplexity] = {}
    if windows:
        states = last_states(loaded, windows, device, limits=limits)
        against = beside.against(windows, states) if beside is not None else None
        scored = scores(states, windows, device, limits, against)
    return Findings(
        folder,
        chosen.seq_len,
        model_sizes(folder),
        scored,
        missing,
        zero_shot(str(folder), tasks, str(device), dtype=config.model.dtype) if tasks else None,
        measure_speed(folder, device, chosen.seq_len) if speed else None,
    )


def _comparison(found: Sequence[Findings], served: Sequence[Throughput]) -> Table:
    """Return models side by side, one a line, the first as what the others are held against."""
    header = ["model", "weights", "perplexity", "worst rise", "KL", "same top token"]
    header += ["reads", "writes", "memory"] if served else []
    rows = [[*_name_and_size(one, found[0]), *_quality(one, found[0])] for one in found]
    for row, one in zip(rows, served, strict=False):
        row += [
            f"{one.prompt:,.0f}/s ({one.prompt_ratio:.2f}x)",
            f"{one.generation:,.0f}/s ({one.generation_ratio:.2f}x)",
            size_text(one.peak_bytes),
        ]
    return text_table("models side by side", header, rows, caption=_caption(found, served))


def _caption(found: Sequence[Findings], served: Sequence[Throughput]) -> str:
    texts = ", ".join(found[0].perplexities)
    parts = [f"geometric mean over {texts}" if len(found[0].perplexities) > 1 else texts]
    if any(one.kl is None for other in found[1:] for one in other.perplexities.values()):
        parts.append("no agreement where a tokenizer is another than the first model's")
    if served:
        parts.append("tokens a second, one sequence at a time, as measured side by side here")
    return " · ".join(part for part in parts if part)


def _name_and_size(one: Findings, first: Findings) -> list[str]:
    name = one.folder.parent.name if one.folder.name == "model" else one.folder.name
    size, base = one.sizes.dense or 0, first.sizes.dense or 0
    return [name, f"{size_text(size)} ({size / base:.2f}x)" if base else size_text(size)]


def _quality(one: Findings, first: Findings) -> list[str]:
    """Return perplexity, worst rise over the first model, divergence and equal first choices."""
    values, base = one.perplexities, first.perplexities
    if not values:
        return [NONE] * 4
    known = [found.perplexity for found in values.values()]
    finite = all(map(math.isfinite, known))
    mean = figure(geometric_mean(known)) if finite else NONE
    pairs = [(found.nll, base[label].nll) for label, found in values.items() if label in base]
    rise = figure(perplexity_of(max(own - other for own, other in pairs))) if pairs else NONE
    close = [(found.kl, found.top1) for found in values.values()]
    if any(kl is None for kl, _ in close):
        return [mean, rise, NONE, NONE]
    kl, top1 = (fmean(part) for part in zip(*close, strict=True))
    return [mean, rise, f"{kl:.4f}", f"{top1:.1%}"]


def _sentences(found: Findings) -> Iterator[str]:
    for label, one in found.perplexities.items():
        yield (
            f"perplexity {one.perplexity:.3f} on {label} ({one.windows} windows of "
            f"{found.seq_len} tokens, {one.nll:.4f} nats per predicted token)"
        )
    if found.tasks is not None:
        yield from _task_sentences(found.tasks)
    forms = {
        "on the disk": found.sizes.dense,
        "masks": found.sizes.masks,
        "masks and surviving values by count": found.sizes.bits_and_values,
    }
    sizes = [f"{size_text(size)} {form}" for form, size in forms.items() if size is not None]
    yield f"weights: {', '.join(sizes)}"
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
