"""How fast models read and write text, what memory they take, side by side on this machine.

Each model has a process of its own, so that its memory is its own, and the models take turns, in
one order and then in the other: what else the machine does at the time slows all of them, and what
a model leaves in the caches is not always at the cost of the same one. A turn lasts long enough for
a small model to be timed. A ratio is the median over the rounds of the quotient of two times that
lie next to each other.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Self

import psutil
import torch

from fedprune.errors import ModelError
from fedprune.models.device import wait
from fedprune.models.loading import whole_model

NEW_TOKENS = 32
"""How many tokens are written in a round."""

_ROUNDS = 5
_PROMPT = 16  # tokens that writing starts from
_LEAST_S = 0.1  # of a turn; a model that needs less is run several times
_WAIT_S = 600.0  # for a model to load, or for one round
_END = "end"
_CONTEXT = multiprocessing.get_context("spawn")  # a fork would share our memory


@dataclass(frozen=True)
class Throughput:
    """What serving a model takes."""

    model: str
    prompt: float  # tokens a second that it reads, one sequence at a time
    generation: float  # tokens a second that it writes, one sequence at a time, with a cache
    # prompt_ratio, generation_ratio: the same as multiples of the first model's, above 1 if it is
    # faster
    prompt_ratio: float
    generation_ratio: float
    # most memory that loading and running it took: of its process beyond what the libraries take,
    # or on the device
    peak_bytes: int


def compare_throughput(
    models: Sequence[str | Path],
    device: str | torch.device = "cpu",
    seq_len: int = 128,
    rounds: int = _ROUNDS,
    revision: str | None = None,
) -> list[Throughput]:
    """Measure models side by side; all of them are in memory together.

    `models`: Hugging Face folders or ids; the first is what the others are held against. `device`:
    where they run, each in the type that it is stored in. `rounds`: how often each takes its turn,
    after one that does not count. Raises ModelError if a model cannot be loaded or run here; says
    which and why.
    """
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_Worker(str(model), str(device), revision)) for model in models
        ]
        for worker in workers:  # one after another: loading two at once takes more memory
            worker.ask("load")
        reading = _turns(workers, "read", seq_len, rounds)
        writing = _turns(workers, "write", NEW_TOKENS, rounds)
        return [
            Throughput(
                worker.model,
                seq_len / median(reads),
                NEW_TOKENS / median(writes),
                _ratio(reading[0], reads),
                _ratio(writing[0], writes),
                int(worker.ask("peak")),
            )
            for worker, reads, writes in zip(workers, reading, writing, strict=True)
        ]


def _turns(workers: Sequence["_Worker"], what: str, tokens: int, rounds: int) -> list[list[float]]:
    """Return the seconds of each round, by model; the first round only warms up."""
    seconds: list[list[float]] = [[] for _ in workers]
    turns = list(zip(workers, seconds, strict=True))
    for _ in range(rounds + 1):
        for worker, found in turns:
            found.append(worker.ask(what, tokens))
        turns.reverse()
    return [found[1:] for found in seconds]


def _ratio(first: Sequence[float], other: Sequence[float]) -> float:
    return median(one / two for one, two in zip(first, other, strict=True))


class _Worker:
    """A process that holds one model and answers what it is asked."""

    def __init__(self, model: str, device: str, revision: str | None = None) -> None:
        self.model = model
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve,
            args=(theirs, model, device, revision),
            name=f"measuring {model}",
            daemon=True,
        )
        self._theirs = theirs

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._pipe.send((_END, 0))
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, what: str, tokens: int = 0) -> float:
        """Return a figure, or raise ``ModelError`` with what the process says or how it ended."""
        try:
            self._pipe.send((what, tokens))
            if not self._pipe.poll(_WAIT_S):
                raise ModelError(
                    f"'{self.model}' took longer than {_WAIT_S:.0f} s to {what}. "
                    "Lower `evaluation.seq_len`, or measure a smaller model."
                )
            found: float | str = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise ModelError(
                f"The process that measured '{self.model}' ended with {self._process.exitcode}, "
                "probably for want of memory: all models are in memory together. Measure fewer."
            ) from None
        if isinstance(found, str):
            raise ModelError(f"'{self.model}' cannot be measured: {found}")
        return found


def _serve(pipe: Connection, model: str, device: str, revision: str | None) -> None:
    """Answer questions until nobody asks any more: seconds, or bytes; a text is an error."""
    with closing(pipe):
        served: _Served | None = None
        while True:
            try:
                what, tokens = pipe.recv()
            except EOFError:
                return
            if what == _END:
                return
            try:
                if served is None:
                    served = _Served(model, torch.device(device), revision)
                pipe.send(served.answer(what, tokens))
            except Exception as error:  # whatever it is, the other side tells it
                pipe.send(" ".join(f"{type(error).__name__}: {error}".split())[:500])


class _Served:
    """A model in memory."""

    def __init__(self, model: str, device: torch.device, revision: str | None = None) -> None:
        self._device = device
        self._before = psutil.Process().memory_info().rss
        self._model = whole_model(model, revision).to(device).eval()

    def answer(self, what: str, tokens: int) -> float:
        """Return how long it takes to load, read or write, or the peak of memory."""
        if what == "peak":
            return float(self._peak())
        if what == "load":
            return 0.0
        length = tokens if what == "read" else _PROMPT
        ids = (
            torch.arange(length, device=self._device)[None]
            % self._model.config.get_text_config().vocab_size
        )
        wait(self._device)
        started, runs = time.perf_counter(), 0
        while not runs or time.perf_counter() - started < _LEAST_S:
            self._run(what, ids, tokens)
            wait(self._device)
            runs += 1
        return (time.perf_counter() - started) / runs

    @torch.inference_mode()
    def _run(self, what: str, ids: torch.Tensor, tokens: int) -> None:
        """Read a text, or write one."""
        if what == "read":
            self._model(input_ids=ids, use_cache=False)
            return
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - self._before)
