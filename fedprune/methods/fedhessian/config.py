"""FedHessian's keys; ``conf/strategy/fedhessian.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from fedprune.config import RunConfig, StrategyConfig
from fedprune.config.relations import serves_worst, sketches_add, told
from fedprune.config.schema import SECOND_MOMENTS, Count, StructuredConfig, strategy_for
from fedprune.config.suggest import show


class FedHessianConfig(StrategyConfig):
    """How second moments travel."""

    pooling: Literal[  # type: ignore[assignment]  # one way more than of other statistics
        "tokens", "clients", "scaled", "worst"
    ]
    moments: Literal["float32", "float16", "eigen", "nystrom"]
    bits_per_weight: Annotated[float, Field(gt=0)] | None
    budget_mb: Annotated[float, Field(gt=0)] | None
    max_width: Count | None
    rest: Literal["none", "public"]
    target: Literal["pruned", "dense"]

    pools = True
    quantizes = True
    pruners = SECOND_MOMENTS
    removes_units = True

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield which pruners use no second moments, and what only a sketch has."""
        own = (self._bits, self._budget, self._whole, self._target, self._pooling)
        yield from told(run, (_pruner, *own, sketches_add, serves_worst))

    def _bits(self, run: RunConfig) -> Iterator[str]:
        if self.moments in ("float32", "float16") and self.bits_per_weight is not None:
            yield (
                f"`strategy.bits_per_weight` must be null with `strategy.moments` "
                f"{show(self.moments)}, which sends every entry, got {show(self.bits_per_weight)}. "
                "Set strategy.moments=eigen or strategy.moments=nystrom."
            )

    def _budget(self, run: RunConfig) -> Iterator[str]:
        if self.budget_mb is not None and self.bits_per_weight is not None:
            yield (
                "`strategy.bits_per_weight` must be null with `strategy.budget_mb`, from which it "
                f"follows, got {show(self.bits_per_weight)}. Leave one of the two out."
            )

    def _whole(self, run: RunConfig) -> Iterator[str]:
        if isinstance(run.pruner, StructuredConfig) and self.max_width is not None:
            yield (
                f"`strategy.max_width` must be null with pruner={run.pruner.name}, which repairs "
                f"the widest matrices with their second moments, got {self.max_width}. Set "
                "strategy.max_width=null; strategy.moments=eigen sends less."
            )

    def _pooling(self, run: RunConfig) -> Iterator[str]:
        if self.pooling != "worst":
            return
        if self.rest == "public":
            yield (
                "`strategy.rest` must be 'none' with strategy.pooling=worst, which weighs clients "
                "by what they told themselves, got 'public'. Leave it out, or set "
                "strategy.pooling=clients."
            )
        if self.target == "dense":
            yield (
                "`strategy.target` must be 'pruned' with strategy.pooling=worst, which weighs "
                "clients by what they lose of the outputs of the dense weight, got 'dense'. Leave "
                "it out, or set strategy.pooling=clients."
            )
        if isinstance(run.pruner, StructuredConfig):
            yield (
                f"`strategy.pooling` must not be 'worst' with pruner={run.pruner.name}, which "
                "removes units, got 'worst': clients' errors are those of single weights that go. "
                "Set strategy.pooling=clients, or pruner=alps."
            )

    def _target(self, run: RunConfig) -> Iterator[str]:
        if self.target != "dense":
            return
        if run.schedule.name != "iterative":
            yield (
                f"`strategy.target` must be 'pruned' with schedule={run.schedule.name}, where "
                "clients never hear what becomes of earlier blocks, so that their inputs cannot "
                "be compared with the dense model's, got 'dense'. Set schedule=iterative."
            )
        if self.moments not in ("float32", "float16"):
            yield (
                f"`strategy.moments` must be 'float32' or 'float16' with strategy.target=dense, "
                f"got {show(self.moments)}: the target divides by the smallest directions of the "
                "moments, which a sketch leaves out. Set strategy.moments=float16, or "
                "strategy.target=pruned."
            )
        if run.privacy.secure:
            yield (
                "`strategy.target` must be 'pruned' with `privacy.secure` true, got 'dense': cross "
                "moments cannot be sums under masks yet. Leave it out."
            )
        if isinstance(run.pruner, StructuredConfig):
            yield (
                f"`strategy.target` must be 'pruned' with pruner={run.pruner.name}, which removes "
                "units, got 'dense'. Leave it out, or set pruner=alps."
            )


def _pruner(run: RunConfig) -> Iterator[str]:
    name = run.pruner.name
    if name not in SECOND_MOMENTS:
        names = ", ".join(map(repr, SECOND_MOMENTS))
        yield (
            f"`pruner.name` must be one of {names} with strategy=fedhessian, which sums the second "
            f"moments of inputs, got {show(name)}. Set pruner={SECOND_MOMENTS[0]}, or "
            f"strategy={strategy_for(name)}."
        )


CONFIG = FedHessianConfig
