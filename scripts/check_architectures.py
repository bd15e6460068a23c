"""Say of every class of transformers that writes text whether it can be pruned from end to end.

    python scripts/check_architectures.py [MODEL_TYPE ...] [--class causal|image-text]
                                          [--json FILE] [--markdown FILE]

Those of AutoModelForCausalLM, or of AutoModelForImageTextToText, whose text decoder is pruned.

A tiny model of each is written by plain transformers and loaded again: what does not come back with
the same logits, plain transformers cannot do. Then three clients prune it together on sums, block
by block, one of them from hidden states that are written down between two blocks, as in a
deployment. It works if

- the masks are those of one client with all texts, bit for bit,
- and those of Wanda as written here, on plain transformers with hooks, with as many zeros in each
  row as were asked for,
- the exported model, loaded by plain transformers, has the weights of the masked original bit for
  bit, towers for images among them, and its logits,
- the perplexity of the masked model is the one that plain transformers gives,
- what has no mask of the matrices in the blocks is named.

Each model type has a process of its own, so that one that crashes or hangs stops no other.
"""

import argparse
import inspect
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedprune.config import config_from_overrides
from fedprune.errors import FedpruneError
from fedprune.evaluation.perplexity import perplexity
from fedprune.methods.exchange import BlockAggregator, BlockTask, Contributor
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import get_method
from fedprune.models.export import export_model
from fedprune.models.layout import LinearRef
from fedprune.models.loading import LoadedModel, load_model, model_shapes
from fedprune.pruning.blocks import BlockWalk, input_groups, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import mask_of

if __package__:
    from scripts.tiny_architectures import MODEL_TYPES, VOCABULARY, tiny_model, tiny_tokenizer
else:
    from tiny_architectures import MODEL_TYPES, VOCABULARY, tiny_model, tiny_tokenizer

WORKS, REFUSED, WRONG, CRASHES, PLAIN = "works", "refused", "wrong", "crashes", "plain"
_HEADINGS = {
    WORKS: "works from end to end",
    REFUSED: "refused, with the reason",
    WRONG: "runs, but fails a check",
    CRASHES: "crashes",
    PLAIN: "plain transformers cannot build, run, save and reload it",
}
_AUTO: dict[str, type[Any]] = {
    "causal": AutoModelForCausalLM,
    "image-text": AutoModelForImageTextToText,
}
SPARSITY = 0.5
_TOKENS = 32
_CLIENTS = (2, 1, 2)  # samples of each
_CLOSE = 1e-5  # relative: scores nearer than this are equal but for rounding

Masks = dict[int, dict[str, Tensor]]


class CheckError(Exception):
    """A check that failed; the message says which and how."""


@dataclass
class Found:
    """What was found of a model type."""

    model_type: str  # what its configuration calls it
    outcome: str  # 'works', 'refused', 'wrong', 'crashes' or 'plain' (plain transformers cannot)
    reason: str = ""
    linears: int = 0
    dense: float = 0.0  # share of the weights of the blocks' matrices that stay dense
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def check(model_type: str, folder: Path, kind: str = "causal") -> Found:
    """Return what becomes of a tiny model of a type; its files go into ``folder``.

    `folder`: empty. `kind`: by which of the library's classes it is loaded.
    """
    dense = folder / "dense"
    try:
        _write_plain(model_type, dense, kind)
    except Exception as error:
        return Found(model_type, PLAIN, _said(error))
    try:
        return _pruned(model_type, dense, folder / "pruned", kind)
    except FedpruneError as error:
        return Found(model_type, REFUSED, str(error).replace(str(dense), "FOLDER"))
    except CheckError as error:
        return Found(model_type, WRONG, str(error))
    except Exception as error:
        return Found(model_type, CRASHES, _said(error))


def _write_plain(model_type: str, folder: Path, kind: str) -> None:
    """Write a tiny model, after checking that plain transformers brings it back."""
    model, tokens = tiny_model(model_type), torch.stack(_samples()[:2])
    model.save_pretrained(folder)  # first: RWKV scales its weights when it runs
    tiny_tokenizer().save_pretrained(folder)
    again, told = _AUTO[kind].from_pretrained(folder, dtype="auto", output_loading_info=True)
    again.eval()
    try:
        before = _logits(model, tokens)
    except Exception:
        if kind == "causal" or told["missing_keys"]:
            raise
        return  # it needs an image, and must be refused for that
    after = _logits(again, tokens)
    if not bool(torch.isfinite(before).all()):
        raise CheckError("its logits are not finite")
    if not torch.equal(after, _logits(again, tokens)):
        raise CheckError("its logits differ from call to call")
    if not torch.allclose(before, after, rtol=0, atol=1e-4):
        raise CheckError("it comes back from its folder with other logits")


def _pruned(model_type: str, dense: Path, exported: Path, kind: str) -> Found:
    config = _config(dense)
    expected = model_shapes(config.model)
    loaded = load_model(config.model)
    if expected != loaded.layout.shapes():
        raise CheckError("the shapes that the configuration tells are not those of the model")
    federated, changes = _federated(config, loaded), _changes(config, loaded)
    if not _same(federated, {block: _bools(found) for block, found in changes.items()}):
        raise CheckError("the masks of three clients are not those of one with all texts")
    plain = type(loaded.model).from_pretrained(dense, dtype="auto").eval()
    matrices = _matrices(plain, loaded.layout.prefix)
    notes = _compare_with_wanda(plain, loaded, federated)
    _compare_perplexity(loaded, plain, changes)
    export_model(loaded, changes, exported)
    same = type(_AUTO[kind].from_pretrained(dense, dtype="auto")) is type(plain)
    # AutoModelForCausalLM takes the text alone out of some checkpoints with images.
    whole = _AUTO[kind if same else "image-text"]
    _compare_weights(whole, exported, _masked(dense, loaded, federated))
    again = _AUTO[kind].from_pretrained(exported, dtype="auto").eval()
    for sample in _samples()[:2]:
        if not torch.equal(_logits(again, sample[None]), _logits(plain, sample[None])):
            raise CheckError("the exported model has other logits than the masked original")
    done = sum(mask.numel() for masks in federated.values() for mask in masks.values())
    count = sum(len(masks) for masks in federated.values())
    left = 1 - done / sum(matrices.values())
    return Found(model_type, WORKS, linears=count, dense=round(left, 4), notes=notes)


def _masked(dense: Path, loaded: LoadedModel, masks: Masks) -> PreTrainedModel:
    """Return the original anew, masked: RWKV's weights are others once it has run."""
    plain = type(loaded.model).from_pretrained(dense, dtype="auto").eval()
    for block, found in masks.items():
        linears = loaded.layout.linears(block)
        for name, mask in found.items():
            matrix = _matrix(plain, f"{loaded.layout.prefix}.{block}", linears[name])
            matrix.masked_fill_(~mask, 0)
    return plain


def _compare_weights(auto: type[Any], exported: Path, masked: PreTrainedModel) -> None:
    again, told = auto.from_pretrained(exported, dtype="auto", output_loading_info=True)
    if type(again) is not type(masked):
        raise CheckError(f"the exported model loads as {type(again).__name__}")
    if told["missing_keys"] or told["unexpected_keys"]:
        odd = sorted([*told["missing_keys"], *told["unexpected_keys"]])
        raise CheckError(f"the exported model lacks or adds `{odd[0]}`")
    state = again.state_dict()
    for name, tensor in masked.state_dict().items():
        if not torch.equal(state[name], tensor):
            raise CheckError(f"`{name}` of the exported model is not that of the masked original")


def _config(folder: Path) -> Any:
    job = [f"model={folder}", f"sparsity={SPARSITY}", f"pruner.seq_len={_TOKENS}"]
    more = ["strategy=fedstats", "schedule=iterative", "pruner.device=cpu"]
    return config_from_overrides([*job, *more])


def _samples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    count = sum(_CLIENTS)
    return [
        torch.randint(3, VOCABULARY - 12, (_TOKENS,), generator=generator) for _ in range(count)
    ]


def _federated(config: Any, loaded: LoadedModel) -> Masks:
    """Prune with several clients that send sums, and go on from what the server made."""
    samples, shares, start = _samples(), [], 0
    for count in _CLIENTS:
        shares.append(samples[start : start + count])
        start += count
    walks = [BlockWalk(loaded, share) for share in shares]
    exchange = get_method("fedstats").exchange(config)
    shapes = tuple(loaded.layout.shapes())
    model = PublicModel(shapes, "", "", "", loaded.weight, input_groups(loaded))
    specs = block_specs(config, range(len(shapes)), len(shapes))
    made: Masks = {}
    for block in range(len(shapes)):
        aggregator = exchange.aggregator(BlockTask(model, block))
        assert isinstance(aggregator, BlockAggregator)
        for number, walk in enumerate(walks):
            client = Contributor(f"client {number}")
            payload = exchange.answer(walk, specs[block], local_prefix=False).payload
            aggregator.add(aggregator.check(payload, client), client)
        changes = aggregator.close().changes
        made[block] = _bools(changes)
        if block + 1 < len(shapes):
            for walk in walks:
                walk.advance(changes)
            # As a node finds them again after its process has ended.
            hidden = [state.clone() for state in walks[-1].hidden]
            walks[-1] = BlockWalk(loaded, shares[-1], hidden=hidden, start=block + 1)
    return made


def _changes(config: Any, loaded: LoadedModel) -> dict[int, Mapping[str, Any]]:
    walk = BlockWalk(loaded, _samples())
    blocks = len(loaded.layout.blocks)
    specs = block_specs(config, range(blocks), blocks)
    return dict(prune_blocks(walk, make_pruner(config.pruner), specs))


def _bools(changes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(mask_of(one).to_bool()) for name, one in changes.items()}


def _same(one: Masks, other: Masks) -> bool:
    return one.keys() == other.keys() and all(
        one[block].keys() == other[block].keys()
        and all(torch.equal(mask, other[block][name]) for name, mask in one[block].items())
        for block in one
    )


# -------------------------------------------------------------------------- on plain transformers


def _compare_with_wanda(plain: PreTrainedModel, loaded: LoadedModel, masks: Masks) -> list[str]:
    """Prune a plain model by Wanda, written anew, and compare; the model is left masked.

    Returns kinds of matrices whose inputs nobody but fedprune looks at here.
    """
    unseen = set()
    for block, found in masks.items():
        where = f"{loaded.layout.prefix}.{block}"
        linears = loaded.layout.linears(block)
        squares = _input_squares(plain, where, {name: linears[name] for name in found})
        for name, mask in found.items():
            if name in squares:
                weight = _matrix(plain, where, linears[name])
                scores = weight.float().abs() * squares[name].sqrt().float()
                _compare(mask, scores, f"{where}.{name}")
            else:
                unseen.add(re.sub(r"\.\d+", "", name))
        for name, mask in found.items():
            _matrix(plain, where, linears[name]).masked_fill_(~mask, 0)
    return [f"inputs not compared: {', '.join(sorted(unseen))}"] if unseen else []


def _compare(mask: Tensor, scores: Tensor, name: str) -> None:
    pruned = math.floor(scores.shape[1] * SPARSITY)
    if bool((mask.sum(1) != scores.shape[1] - pruned).any()):
        raise CheckError(f"`{name}` has not {pruned} zeros in each row")
    order = scores.sort(dim=1, stable=True)
    own = torch.ones_like(mask).scatter_(1, order.indices[:, :pruned], value=False)
    limit = order.values[:, pruned - 1 : pruned]
    close = (scores - limit).abs() <= _CLOSE * limit
    if bool(((own != mask) & ~close).any()):
        raise CheckError(f"`{name}` has another mask than Wanda's")


def _input_squares(
    plain: PreTrainedModel, where: str, linears: Mapping[str, LinearRef]
) -> dict[str, Tensor]:
    """Return the sums of squared inputs of a block's linears, float64, over all samples."""
    sums = {
        name: torch.zeros(linear.shape[1], dtype=torch.float64)
        for name, linear in linears.items()
        if linear.expert is None
    }

    def adder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().double().reshape(-1, args[0].shape[-1])
            sums[name] += rows.square().sum(0)

        return add

    handles = [
        plain.get_submodule(f"{where}.{name}").register_forward_pre_hook(adder(name))
        for name in sums
    ]
    holders = {linear.expert.holder for linear in linears.values() if linear.expert}
    calls: dict[str, list[tuple[Tensor, ...]]] = {holder: [] for holder in holders}
    for holder in holders:
        module = plain.get_submodule(f"{where}.{holder}")
        names = tuple(inspect.signature(type(module).forward).parameters)[1:]
        if len(names) == 3:  # hidden states, who is chosen, with which weight

            def keep(_module: nn.Module, args: tuple[Tensor, ...], *, holder: str = holder) -> None:
                calls[holder].append(args)

            handles.append(module.register_forward_pre_hook(keep))
    for sample in _samples():
        _logits(plain, sample[None])
    for handle in handles:
        handle.remove()
    for holder, made in calls.items():
        for args in made:
            _add_experts(plain.get_submodule(f"{where}.{holder}"), args, linears, sums, holder)
    return sums


def _add_experts(
    module: nn.Module,
    args: tuple[Tensor, ...],
    linears: Mapping[str, LinearRef],
    sums: dict[str, Tensor],
    holder: str,
) -> None:
    """Add the squared inputs of all matrices of fused experts, told from gradients.

    The derivative of one output of one expert for one token, by the matrix that made it, is the
    token's input of that matrix.
    """
    hidden, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
    rows = chosen.reshape(len(hidden), -1)
    own = {
        (one.expert.index, one.expert.parameter): name
        for name, one in linears.items()
        if one.expert and one.expert.holder == holder
    }
    for name in own.values():
        sums.setdefault(name, torch.zeros(linears[name].shape[1], dtype=torch.float64))
    last = {name for _, name in own if name.startswith("down")}
    for token, experts in zip(hidden, rows, strict=True):
        for expert in set(experts.tolist()):
            if not any(index == expert for index, _ in own):
                continue  # one that does nothing
            for (index, parameter), name in own.items():
                if index == expert and parameter not in last:
                    sums[name] += token.double().square()
            for parameter in last:
                weight = module.get_parameter(parameter)
                with torch.enable_grad():
                    weight.requires_grad_()
                    with _without_norms(module):
                        made = module(
                            # Twice, for two experts that are one: some code takes nothing single.
                            token.detach().repeat(2, 1),
                            torch.tensor([[expert, expert]] * 2),
                            torch.tensor([[1, 0]] * 2, dtype=token.dtype),
                        )
                    (slope,) = torch.autograd.grad(made[0, 0], weight)
                    weight.requires_grad_(False)
                vector = slope[expert].sum(int(slope[expert][1:].count_nonzero() > 0))
                sums[own[expert, parameter]] += vector.double().square()


@contextmanager
def _without_norms(experts: nn.Module) -> Iterator[None]:
    """Take off what normalises experts' outputs: an output then comes of one row of a matrix."""
    norms = {name: child for name, child in experts.named_children() if "norm" in name}
    for name in norms:
        setattr(experts, name, nn.Identity())
    try:
        yield
    finally:
        for name, child in norms.items():
            setattr(experts, name, child)


def _matrix(plain: PreTrainedModel, where: str, linear: LinearRef) -> Tensor:
    """Return a linear's weight as a (d_out, d_in) view that writes through."""
    return linear.orient(plain.get_parameter(f"{where}.{linear.key}").detach())


def _matrices(plain: PreTrainedModel, prefix: str) -> dict[str, int]:
    """Return the sizes of all parameters in the blocks that are no vectors."""
    return {
        name: parameter.numel()
        for name, parameter in plain.named_parameters()
        if name.startswith(f"{prefix}.") and sum(size > 1 for size in parameter.shape) > 1
    }


def _compare_perplexity(
    loaded: LoadedModel, masked: PreTrainedModel, changes: Mapping[int, Mapping[str, Any]]
) -> None:
    windows = torch.stack(_samples()[:2])
    found = perplexity(loaded, windows, changes=changes).nll
    losses = [
        nn.functional.cross_entropy(_logits(masked, row[None])[0, :-1].float(), row[1:])
        for row in windows
    ]
    expected = float(torch.stack(losses).mean())
    if not math.isclose(found, expected, rel_tol=1e-5):
        raise CheckError(f"its loss is {found:.6f}, plain transformers says {expected:.6f}")


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


# -------------------------------------------------------------------------------------- the table


def _said(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place})"


def _in_process(model_type: str, target: Path, kind: str) -> None:
    """Check a model type and leave what was found in a file."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix=f"{model_type}-"))
    try:
        found = check(model_type, folder, kind)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    target.write_text(json.dumps(asdict(found)))


def check_apart(model_type: str, timeout: float, kind: str = "causal") -> Found:
    """Check a model type in a process of its own.

    `timeout`: seconds after which it is given up. `kind`: by which of the library's classes it is
    loaded.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "found.json")
        process = multiprocessing.get_context("fork").Process(
            target=_in_process, args=(model_type, target, kind)
        )
        process.start()
        process.join(timeout)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        if target.exists():
            found = Found(**json.loads(target.read_text()))
        else:
            why = f"no end after {timeout:.0f} s" if late else f"died with {process.exitcode}"
            found = Found(model_type, CRASHES, why)
    found.seconds = round(time.monotonic() - started, 1)
    return found


def table(found: Sequence[Found]) -> str:
    """Return what was found as Markdown: counts, and all that does not work with its reason."""
    counts = Counter(one.outcome for one in found)
    lines = [f"{len(found)} model types:", "", "| outcome | model types |", "|---|---|"]
    lines += [f"| {_HEADINGS[key]} | {counts[key]} |" for key in _HEADINGS if counts[key]]
    for key, heading in _HEADINGS.items():
        listed = [one for one in found if one.outcome == key]
        if not listed:
            continue
        lines += ["", f"## {heading[0].upper()}{heading[1:]}", ""]
        if key == WORKS:
            lines += ["| model type | pruned matrices | dense share |", "|---|---|---|"]
            lines += [f"| {one.model_type} | {one.linears} | {one.dense:.1%} |" for one in listed]
        else:
            lines += ["| model type | reason |", "|---|---|"]
            lines += [f"| {one.model_type} | {one.reason.replace('|', '/')} |" for one in listed]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Check model types and write what was found; 1 if one crashes or fails a check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE", help="default: all")
    parser.add_argument(
        "--class", dest="kind", choices=tuple(_AUTO), default="causal", help="default: causal"
    )
    parser.add_argument("--json", type=Path, help="where the findings go, one a model type")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a model type")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.model_types) - set(MODEL_TYPES[args.kind]))
    if unknown:
        parser.error(f"{_AUTO[args.kind].__name__} knows no {', '.join(unknown)}.")
    found = []
    for model_type in args.model_types or MODEL_TYPES[args.kind]:
        one = check_apart(model_type, args.timeout, args.kind)
        found.append(one)
        print(f"{one.model_type:28} {one.seconds:6.1f} s  {one.outcome:8} {one.reason}", flush=True)
        if args.json:
            args.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(table(found))
    counts = Counter(one.outcome for one in found)
    print(", ".join(f"{counts[key]} {key}" for key in _HEADINGS))
    return int(bool(counts[WRONG] or counts[CRASHES]))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sys.exit(main())
