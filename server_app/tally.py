"""Takes each aggregated block, and where the run stands: all to the disk, nothing into memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ModelError, WireError
from fedprune.methods.agreement import (
    BlockSample,
    agreement_matrix,
    agreement_with_result,
    extremes,
    pairwise_agreement,
    tied_weights,
    unanimous_share,
)
from fedprune.models.changes import Changes, Recalled
from fedprune.models.loading import LoadedModel
from fedprune.results.build import ClientAgreement, LinearFigures
from fedprune.wire.changes import Change
from server_app.folder import RunFolder
from server_app.state_files import StateFiles
from strategies.block import BlockResult
from strategies.run_state import RunState, damaged_state

_MATRIX_CLIENTS = 64  # rows of the matrix of agreement between clients


@dataclass
class Tally:
    """What a strategy's results are kept in, and read back from.

    Parameters
    ----------
    folder : RunFolder
        Where masks, values and figures go.
    files : StateFiles
        Where the state goes.
    loaded : LoadedModel
        Names the linears.
    rounds : int
        `strategy.rounds`: the results are those of the last one.
    """

    folder: RunFolder
    files: StateFiles
    loaded: LoadedModel
    rounds: int

    def add(self, number: int, result: BlockResult) -> None:
        """Save a block of a round and its figures."""
        prefix, block = self.loaded.layout.prefix, result.block
        self.folder.save_block(number, prefix, block, result.changes)
        linears = [
            asdict(self._linear(result, name, shape))
            for name, shape in self.loaded.layout.shapes()[block].items()
        ]
        sample = None if result.sample is None else _plain(result.sample)
        figures = {"linears": linears, "sample": sample, "files": self.folder.kept(number, block)}
        self.folder.save_figures(number, block, figures)

    def recall(self, number: int, block: int) -> Mapping[str, Change]:
        """Return what was saved of a block in a round; empty if no client reported it.

        Raises
        ------
        ConfigError
            If it is damaged or not there any more.
        """
        try:
            there, saved = self.folder.kept(number, block), self.folder.read_figures(number, block)
            if there != saved["files"]:
                raise ValueError(f"of round {number} there is {there}, not {saved['files']}")
            return self.folder.read_block(number, block)
        except (OSError, ValueError, KeyError, TypeError, ModelError, WireError) as error:
            raise damaged_state(f"block {block}: {error}") from error

    def save(self, state: RunState, votes: Mapping[str, NDArray[Any]]) -> None:
        """Save where the run stands; the blocks that it counts on are on the disk before."""
        self.folder.settle_blocks(state.round)
        self.files.save(state, votes)
        self.folder.forget_rounds(state.round - 1)

    def votes(self) -> Mapping[str, NDArray[Any]]:
        """Return the sums that were saved last."""
        return self.files.votes()

    def changes(self) -> Changes:
        """Return what becomes of the aggregated blocks, read from disk when it is asked for."""
        return Recalled(self._blocks, partial(self.recall, self.rounds))

    def linears(self) -> list[LinearFigures]:
        """Return the figures of all linears, in the model's order."""
        found = (self.folder.read_figures(self.rounds, block) for block in self._blocks)
        return [LinearFigures(**linear) for figures in found for linear in figures["linears"]]

    def agreement(self, clients: Sequence[str]) -> ClientAgreement | None:
        """Return how far each of these clients agrees with the result and with the others.

        None where clients send no masks.
        """
        found = (self.folder.read_figures(self.rounds, block)["sample"] for block in self._blocks)
        samples = [_sample(plain) for plain in found if plain is not None]
        if not samples:
            return None
        shares = agreement_with_result(samples)
        result = {name: shares[name] for name in clients if name in shares}
        shown = extremes(result, _MATRIX_CLIENTS)
        weights = sum(sample.weights for sample in samples)
        return ClientAgreement(weights, result, shown, agreement_matrix(samples, shown))

    @property
    def _blocks(self) -> range:
        return range(len(self.loaded.layout.blocks))

    def _linear(self, result: BlockResult, name: str, shape: tuple[int, int]) -> LinearFigures:
        mask, votes = result.masks.get(name), result.histograms.get(name)
        weights = shape[0] * shape[1]
        zeros = weights - mask.survivors if mask is not None else 0
        return LinearFigures(
            name=f"{self.loaded.layout.prefix}.{result.block}.{name}",
            weights=weights,
            zeros=zeros,
            voters=result.voters,
            votes=[int(count) for count in votes] if votes is not None else [],
            agreement=None if votes is None else pairwise_agreement(votes, result.effective_voters),
            unanimous=None if votes is None else unanimous_share(votes),
            tied=(0, 0) if votes is None else tied_weights(votes, zeros),
        )


def _plain(sample: BlockSample) -> dict[str, object]:
    clients = {name: bits.tobytes().hex() for name, bits in sample.clients.items()}
    return {
        "weights": sample.weights,
        "result": sample.result.tobytes().hex(),
        "clients": clients,
    }


def _sample(plain: Mapping[str, Any]) -> BlockSample:
    clients = {name: _bits(text) for name, text in plain["clients"].items()}
    return BlockSample(plain["weights"], _bits(plain["result"]), clients)


def _bits(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
