"""Depth's keys; ``conf/strategy/depth.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator

from fedprune.config import RunConfig, StrategyConfig, allocation_of
from fedprune.config.relations import dense_model_only, samples_alone, told
from fedprune.config.schema import Count, Share
from fedprune.config.suggest import show


def _blocks(text: str) -> str:
    parts = text.split(",") if text else []
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        raise ValueError("must be numbers of blocks separated by commas, such as '3,4'")
    if len(set(map(int, parts))) < len(parts):
        raise ValueError("must name every block once")
    return ",".join(sorted(parts, key=int))


class DepthConfig(StrategyConfig):
    """How many blocks go, which, and whether a linear map stands in for them."""

    remove: Count | None
    contiguous: bool
    blocks: Annotated[str, AfterValidator(_blocks)]
    repair: bool
    damping: Share

    allocates = False

    @property
    def chosen(self) -> tuple[int, ...]:
        """The blocks in `blocks`, ascending."""
        return tuple(int(part) for part in self.blocks.split(",")) if self.blocks else ()

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield what a pass over the dense model rules out, and numbers that contradict."""
        yield from told(run, (dense_model_only, samples_alone, self._allocation, self._count))

    def _allocation(self, run: RunConfig) -> Iterator[str]:
        if allocation_of(run) != "uniform":
            yield (
                f"`allocation.name` must be 'uniform' with strategy={self.name}, which makes no "
                f"zeros, got {show(run.allocation.name)}. Set allocation=uniform."
            )

    def _count(self, run: RunConfig) -> Iterator[str]:
        named = len(self.chosen)
        if self.remove is not None and named and named != self.remove:
            yield (
                f"`strategy.remove` must be null or the number of `strategy.blocks`, {named}, got "
                f"{self.remove}. Leave it out."
            )
        if self.repair and 0 in self.chosen:
            yield (
                "`strategy.blocks` must not name block 0 with `strategy.repair`, which puts the "
                f"map into the block before, got {show(self.blocks)}. Set strategy.repair=false."
            )


CONFIG = DepthConfig
