"""What calibration leaves behind of a linear's inputs: one number per input column."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ColumnStatistics:
    """Sum of squares of each input of a linear over all calibration tokens.

    Additive: the statistics of two sets of tokens are the sums of both fields.

    Parameters
    ----------
    sum_squares : Tensor
        Sum over tokens of x_j**2, float32, shape (d_in,).
    tokens : int
        Number of tokens summed.
    """

    sum_squares: Tensor
    tokens: int

    @property
    def norms(self) -> Tensor:
        """L2 norm of each input over all tokens, float32, shape (d_in,)."""
        # The root of a float32 in double precision, rounded once, is the correctly rounded one on
        # every machine; some processors' float32 vector roots are an ulp off.
        return self.sum_squares.double().sqrt().float()
