"""A walk through a model's blocks that can tell what enters their linear maps."""

from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.walk import ModelWalk
from fedprune.pruning.recorder import Recorded, StatisticsRecorder
from fedprune.pruning.statistics import Statistics


class BlockWalk(ModelWalk):
    """Carries a client's samples through the blocks of a model, one block at a time.

    Each block runs twice a sample: dense, to see what enters its linear maps
    (:meth:`collect`), and pruned, to make the next block's input (:meth:`advance`), as in Wanda
    (https://arxiv.org/abs/2306.11695) and FedPrLLM (https://arxiv.org/abs/2505.13547). Samples may
    be none for pruners that need no inputs.
    """

    def full_name(self, linear: str) -> str:
        """Return the name in the whole model of one of the current block's linear maps."""
        return f"{self.model.layout.prefix}.{self.position}.{linear}"

    def weights(self) -> dict[str, Tensor]:
        """Return the current block's dense weights by name, (d_out, d_in) views on the device."""
        tensors = self._tensors()
        return {
            name: linear.orient(tensors[linear.key])
            for name, linear in self.model.layout.linears(self.position).items()
        }

    def collect(
        self, kind: Recorded = "columns", max_width: int | None = None
    ) -> dict[str, Statistics]:
        """Run the current block dense on every sample and return what entered its linear maps.

        Parameters
        ----------
        kind : {"columns", "moments"}
            Sums of squares a column, or all products of two columns.
        max_width : int or None
            Of wider inputs only sums of squares are taken, whatever the kind.

        Returns
        -------
        dict[str, ColumnStatistics or MomentStatistics]
            Name of the linear -> float32 sums and token count, on the walk's device; linears that
            read the same input share one object.

        Raises
        ------
        ModelError
            Without samples, when a linear map is never called, or when memory runs out.
        """
        if not self._hidden:
            raise ModelError(
                f"There are no calibration inputs for block {self.position}. Raise "
                "`pruner.num_calibration_samples`, or use `pruner=magnitude`, which needs none."
            )
        linears = self.model.layout.linears(self.position)

        def run() -> dict[str, Statistics]:
            with StatisticsRecorder(linears, kind, max_width) as recorder:
                for _ in self._outputs(self._tensors()):
                    pass  # the outputs of the dense block are of no use
                return recorder.statistics()

        with self._explained("collecting statistics of"):
            return self._retried(run)
