"""Any exchange whose sums are of integers, held under masks: nobody sees a single client's answer.

What a client sends of a block are its words (:mod:`fedprune.methods.word_sums`), all of one width
together as one sum of the protocol (:mod:`fedprune.privacy.secure_sums`). The aggregator adds up
masked words; once a sum is open, the method's own aggregator takes it in place of the answers, and
closes as always. Neither the method nor its aggregator knows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprune.config import RunConfig, replace, to_yaml
from fedprune.errors import ConfigError, WireError
from fedprune.methods.exchange import (
    Aggregator,
    Answer,
    BlockExchange,
    BlockTask,
    Contributor,
)
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import get_method, main_exchange
from fedprune.methods.state import Arrays, Keepable, gathered, scattered
from fedprune.methods.word_sums import Layout, Words
from fedprune.privacy.secure_server import MaskedSum
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec
from fedprune.wire.arrays import Arrays as Message
from fedprune.wire.arrays import decode_arrays, encode_arrays, most_bytes

R = TypeVar("R")

FORM = "fedprune.masked.v1"
"""The format of masked payloads: named arrays, those of each width as the protocol made them."""

_WIDE = 128
_FRAME = 1024  # bytes that the names and lengths of a width take


def sum_name(exchange: str, number: int, block: int, bits: int) -> str:
    """Return what the protocol calls the words of a width of a block in a round.

    `number`: the round, from 1. `block`, `bits`: the block, and the bits of a word.
    """
    return f"{exchange}/round-{number}/block-{block}/{bits}-bit"


def widths(layout: Layout) -> dict[int, int]:
    """Return bits -> how many words of that width are one sum of the protocol.

    Each sum costs every client a key and shares of it, so numbers of 64 bits go with those of 128
    where there are any.
    """
    found: dict[int, int] = {}
    for spec in layout.values():
        bits = _width(spec, layout)
        found[bits] = found.get(bits, 0) + spec.count
    return {bits: count for bits, count in found.items() if count}


def packed(words: Words, layout: Layout) -> dict[int, NDArray[Any]]:
    """Return bits -> all words of that width in a row, in the order of the layout."""
    parts: dict[int, list[NDArray[Any]]] = {}
    for name, spec in layout.items():
        bits = _width(spec, layout)
        wide = bits != spec.bits
        parts.setdefault(bits, []).append(_widened(words[name]) if wide else words[name])
    return {bits: np.concatenate(parts[bits]) for bits in widths(layout)}


def unpacked(sums: Mapping[int, NDArray[Any]], layout: Layout) -> Words:
    """Undo :func:`packed`, of words or of their sums."""
    places, found = dict.fromkeys(sums, 0), Words()
    for name, spec in layout.items():
        bits = _width(spec, layout)
        if not spec.count:
            found[name] = np.zeros(spec.shape, spec.dtype)
            continue
        start = places[bits]
        places[bits] = start + spec.count
        part = sums[bits][start : places[bits]]
        # The lower half of a sum is the sum of the lower halves, modulo 2**64.
        found[name] = part if bits == spec.bits else part[:, 0].copy()
    return found


def _width(spec: WordSpec, layout: Layout) -> int:
    wide = any(one.bits == _WIDE and one.count for one in layout.values())
    return _WIDE if wide and spec.bits == 64 else spec.bits


def _widened(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64-bit words as such of 128 bits, with their sign: so the sum tells nothing more."""
    upper = np.where(words >> np.uint64(63) > 0, ~np.uint64(0), np.uint64(0))
    return np.stack((words, upper), axis=1)


def payload_of(masked: Mapping[int, bytes]) -> bytes:
    """Return a block's masked words of every width as one payload."""
    return encode_arrays(
        {str(bits): np.frombuffer(data, dtype=np.uint8) for bits, data in masked.items()}
    )


class MaskedExchange(BlockExchange):
    """An exchange as it is held under masks; its client half is the node's.

    `clients`: how many clients' words are added up at most.
    """

    def __init__(self, inner: BlockExchange, clients: int) -> None:
        super().__init__(inner.config)
        self.inner, self.clients = inner, clients
        self.payload, self.together = inner.payload, inner.together
        self.shares_inputs = inner.shares_inputs

    @property
    def form(self) -> str:
        """The format of masked payloads."""
        return FORM

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return what the inner exchange answers; the node masks it."""
        return self.inner.answer(walk, spec, local_prefix)

    def layout(self, model: PublicModel, block: int, number: int = 1) -> Layout:
        """Return the words of a client's answer about a block in a round.

        Raises ConfigError if the exchange's sums are not of integers.
        """
        task = BlockTask(model, block, number, total_weight=self.clients)
        return word_layout(self.inner, task, self.clients)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        numbers = {1, int(self.config.strategy.rounds)}
        return max(masked_bytes(self.layout(model, block, number)) for number in numbers)

    def aggregator(self, task: BlockTask) -> Aggregator[Any, Any]:
        """Return the inner exchange's; :class:`MaskedAggregator` wraps it with its sums."""
        return self.inner.aggregator(task)


def planned(config: RunConfig, num_blocks: int) -> Iterator[BlockExchange]:
    """Yield all exchanges of a run as they can be asked how many words they send.

    What follows from a survey is not known yet: there is one for each way that it may go.
    """
    survey = get_method(config.strategy.name).survey(config)
    if survey is None:
        yield main_exchange(config)
        return
    yield survey
    for followed in survey.foreseen(num_blocks):
        yield main_exchange(followed)


def word_layout(exchange: BlockExchange, task: BlockTask, clients: int) -> Layout:
    """Return the words of a client's answer to an exchange; errors as `MaskedExchange.layout`."""
    if exchange.prunes and not task.model.shapes[task.block]:
        return {}  # nothing is pruned of it, and nothing asked
    aggregator = exchange.aggregator(task)
    if not aggregator.sums_integers:
        raise ConfigError(
            f"`privacy.secure` must be false with strategy={exchange.config.strategy.name} as it "
            f"is set: what its clients answer to '{exchange.name}' are no sums of integers, which "
            "masks need."
        )
    return aggregator.layout(clients)


def heard_next(heard: str, data: bytes) -> str:
    """Return a hash of all that a client heard of blocks in a round, and now of one more."""
    return hashlib.sha256(bytes.fromhex(heard) + hashlib.sha256(data).digest()).hexdigest()


def heard_alone(data: bytes) -> str:
    """Return the same of a block about which clients are asked by itself; "" for nothing."""
    return heard_next("", data) if data else ""


def context_of(config: RunConfig, weights_hash: str, heard: str) -> bytes:
    """Return all that a client's words about a block depend on beside its texts.

    Masks of clients of which this differs do not cancel: a server that tells each something else,
    to find one's words in the sum, finds noise.

    `heard`: what came of the blocks up to this one in this round, as :func:`heard_next`; "" for
    nothing.
    """
    # The one key that a node's operator may change.
    alike = replace(config, pruner=replace(config.pruner, device="auto"))
    return json.dumps([to_yaml(alike), weights_hash, heard]).encode()


def masked_bytes(layout: Layout) -> int:
    """Return the most bytes that masked words of a layout take on the wire."""
    return _FRAME + sum(_FRAME + count * bits // 8 for bits, count in widths(layout).items())


class MaskedAggregator(Aggregator[dict[int, bytes], R], Generic[R]):
    """Adds up masked words of a block, and hands their sum on.

    `layout`: the words of a client's answer. `sums`: for each cohort of clients, which are added up
    by themselves: name of the sum -> the sum of the words of a width, in the order of
    :func:`widths`. `names`: client's name in the results -> its cohort, and its name in the
    protocol.
    """

    def __init__(
        self,
        inner: Aggregator[Any, R],
        layout: Layout,
        sums: Sequence[Mapping[str, MaskedSum]],
        names: Mapping[str, tuple[int, str]],
    ) -> None:
        self.inner, self.sums = inner, sums
        self._layout, self._names = layout, names
        self._widths = widths(layout)

    def check(self, payload: bytes, client: Contributor) -> dict[int, bytes]:
        """Take masked words apart; what they hide cannot be looked at."""
        message, found = Message(payload, map(str, self._widths)), {}
        for bits, count in self._widths.items():
            expected = WordSpec(count, bits).message
            announced = message.announced(str(bits))
            if announced.nbytes > most_bytes(expected) or announced.dtype != "uint8":
                raise WireError(f"masked words of {bits} bits must be bytes, and no more than are.")
            found[bits] = message.take(str(bits), announced).tobytes()
            decode_arrays(found[bits], expected)
        message.finish()
        return found

    def add(self, answer: dict[int, bytes], client: Contributor) -> None:
        """Add a client's masked words."""
        cohort, name = self._names.get(client.name, (0, ""))
        for bits, one in zip(self._widths, self.sums[cohort].values(), strict=True):
            one.add(name, answer[bits])

    def open(self, cohort: int, clients: Sequence[Contributor]) -> None:
        """Hand the sums of a cohort, which must be open, on.

        Raises QuorumError if they cannot be opened. Raises WireError if such clients' answers
        cannot come to that.
        """
        totals = (one.total() for one in self.sums[cohort].values())
        sums = dict(zip(self._widths, totals, strict=True))
        self.inner.add_total(unpacked(sums, self._layout), clients)

    @property
    def closed(self) -> bool:
        """Whether it is fixed who is in the sums; of a cohort that was left out it never is."""
        return any(all(one.closed for one in sums.values()) for sums in self.sums)

    def close(self) -> R:
        """Return what the sums come to."""
        return self.inner.close()

    def state(self) -> Arrays:
        """Return the sums of masked words as arrays."""
        return gathered(self._parts())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        scattered(arrays, self._parts())

    def _parts(self) -> dict[str, Keepable]:
        return {
            f"{cohort}/{bits}": one
            for cohort, sums in enumerate(self.sums)
            for bits, one in zip(self._widths, sums.values(), strict=True)
        }
