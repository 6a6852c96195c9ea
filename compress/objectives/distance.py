"""The distance between two factors, as a pure function."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def factor_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""Distance of two batches of factors, whatever their scale and size; a scalar in 0..2.

    .. math:: D(a, b) = \sqrt{n} \cdot \operatorname{mean}_{i,j} |a_{ij}/\|a_i\|_2 - b_{ij}/\|b_i\|_2|

    with n elements a sample: the L1 distance of normalised factors (Kim et al. 2018, eq. 3; Huang et al. 2021, eq. 2),
    times sqrt(n).  Where the published form divides by n its size, and with it the meaning of a weight, falls as
    1 / sqrt(n); this one does not.  It is at most 2 because a vector's L1 norm is at most sqrt(n) times its L2 norm.

    Args:
        a: (B, ...), any shape.
        b: of the same shape.
    """
    a, b = (F.normalize(factor.flatten(1).float(), dim=1) for factor in (a, b))
    distance: Tensor = (a - b).abs().mean() * math.sqrt(a.shape[1])
    return distance
