"""Where a model's weights are: in files that are mapped, or in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fedprune.models.checkpoint import Stored


class WeightSource(Protocol):
    """Gives a model's tensors one by one, under the names of the model's state."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU; writing to it may change the model."""
        ...

    def prefetch(self, names: Iterable[str]) -> None:
        """Let tensors that will be asked for next be read in the background."""
        ...

    def stored_name(self, name: str) -> str:
        """Return how a checkpoint of this model calls a tensor."""
        ...


@dataclass(frozen=True)
class HeldWeights:
    """Weights in memory: of a model made in Python, or of a checkpoint that cannot be mapped.

    Parameters
    ----------
    model : nn.Module
        What holds them.
    """

    model: nn.Module

    def tensor(self, name: str) -> Tensor:
        """Return the tensor itself."""
        owner, _, attribute = name.rpartition(".")
        found: Tensor = getattr(self.model.get_submodule(owner), attribute)
        return found.detach()

    def prefetch(self, names: Iterable[str]) -> None:
        """Do nothing: all is there."""

    def stored_name(self, name: str) -> str:
        """Return the name in the model's state: every loader of ours knows it."""
        return name


@dataclass(frozen=True)
class MappedWeights:
    """Weights in safetensors files; none is in memory for longer than somebody holds it.

    Parameters
    ----------
    places : Mapping[str, Stored]
        Name in the model's state -> place of the tensor.
    like : Mapping[str, Tensor]
        Name -> tensor of the type that the model computes in; its data are not looked at.
    """

    places: Mapping[str, Stored]
    like: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """Return the tensor, mapped; a copy where the model computes in another type."""
        return self.places[name].map().to(self.like[name].dtype)

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system to read the tensors' files ahead."""
        for name in names:
            self.places[name].prefetch()

    def stored_name(self, name: str) -> str:
        """Return the name in the files that the model came from."""
        return self.places[name].name


def find_places(
    names: Iterable[str], stored: Mapping[str, Stored], prefix: str, tied: Mapping[str, str]
) -> dict[str, Stored]:
    """Return where the tensors of a model's state lie; what is not found is left out.

    Parameters
    ----------
    names : Iterable[str]
        Names in the model's state.
    stored : Mapping[str, Stored]
        What the files hold.
    prefix : str
        Name of the model's body: checkpoints are written with it, or without, for the body alone.
    tied : Mapping[str, str]
        Name -> the name of the tensor that it shares, which may be the only one stored.
    """
    found = {}
    for name in names:
        for wanted in (name, tied.get(name)):
            if wanted is None:
                continue
            short = wanted.removeprefix(f"{prefix}.")
            options = (wanted, short, f"{prefix}.{wanted}")
            place = next((stored[option] for option in options if option in stored), None)
            if place is not None:
                found[name] = place
                break
    return found
