"""Second moments of clients' sums of squares: what is between two columns, public text says.

A solver that reconstructs wants all products of two inputs, of which clients tell the squares
alone. Texts that the public model writes itself calibrate a pruner nearly as well as real ones
where the model knows such texts (Williams et al., arXiv 2410.17170); here they lend the
correlations, and the clients' texts keep their own exact scales.
"""

import torch

from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics


def completed(sums: ColumnStatistics, public: MomentStatistics) -> MomentStatistics:
    """Return moments with the clients' diagonal and public text's correlations.

    ``G_ij = C_ij sqrt(s_i s_j / (C_ii C_jj))``, positive semi-definite as C is. A column that
    public text leaves silent is related to no other.

    `sums`: s, the pooled sums of squares, shape (d_in,). `public`: C, shape (d_in, d_in).
    """
    squares = sums.sum_squares.double().cpu()
    moments = public.moments.double().cpu()
    silent = moments.diagonal() <= 0
    ratio = torch.where(silent, 0.0, squares / torch.where(silent, 1.0, moments.diagonal()))
    scale = ratio.sqrt()
    found = scale[:, None] * moments * scale
    found.diagonal().copy_(squares)
    return MomentStatistics(found.float(), sums.tokens)
