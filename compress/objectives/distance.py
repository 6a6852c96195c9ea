"""Distances between two codes, as pure functions: one value a sample, bounded, whatever the codes' scale and size.

A distance must be bounded because the exploration term makes it large: an unbounded one would diverge.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

UNRELATED_L1 = 2 / math.sqrt(math.pi)
"""Expected :func:`normalized_l1` of two codes with independent Gaussian elements: 1.128."""


def _rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 rows (B, n), in the order in which ``b`` lies in memory: no distance here depends on the order.

    Maps come channels-last from convolutions.  Flattened as they are indexed, each would be copied, and the operations
    of the backward pass behind it would read two layouts at once, which doubled their time.
    """
    if b.ndim == 4 and b.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return a.flatten(1).float(), b.flatten(1).float()


def _units(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _rows(a, b)
    return F.normalize(a, dim=1), F.normalize(b, dim=1)


def normalized_l1(a: Tensor, b: Tensor) -> Tensor:
    r"""L1 distance of normalised codes, free of their size; (B,) in 0..2.

    .. math:: D_i = \frac{1}{\sqrt n} \sum_j |a_{ij}/\|a_i\|_2 - b_{ij}/\|b_i\|_2|

    with n elements a sample.  The published form (Kim et al. 2018, eq. 3; Huang et al. 2021, eq. 2, as implemented)
    divides by n instead, so that its size, and with it the meaning of a weight, falls as 1 / sqrt(n).  The bound is 2
    because a vector's L1 norm is at most sqrt(n) times its L2 norm.

    Args:
        a: (B, ...), any shape.
        b: of the same shape.
    """
    a, b = _units(a, b)
    return (b - a).abs().sum(1) / math.sqrt(a.shape[1])


def normalized_square(a: Tensor, b: Tensor) -> Tensor:
    """Squared L2 distance of normalised codes, 2 - 2 cos; (B,) in 0..4, in 0..2 where no element is negative.

    Zagoruyko and Komodakis 2017, eq. 2, as implemented by its authors (squared), times the number of elements.
    """
    a, b = _units(a, b)
    return (b - a).square().sum(1)


def partial_square(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared L2 distance of normalised codes, less what a ReLU hides anyway; (B,) in 0..4.

    An element does not count where the student's is below the teacher's and the teacher's is not positive
    (Heo et al. 2019, eq. 4).  Normalisation keeps signs and, unlike the published form, a bound.
    """
    teacher, student = _units(teacher, student)
    hidden = (student <= teacher) & (teacher <= 0)
    return (student - teacher).square().masked_fill(hidden, 0).sum(1)


def standardized_huber(a: Tensor, b: Tensor) -> Tensor:
    """Mean smooth L1 distance of codes that are each brought to mean 0 and variance 1; (B,) in 0..2.

    Miles et al. 2024 standardise the teacher's side only; both sides are here, for the bound.
    """
    a, b = (F.layer_norm(rows, rows.shape[1:], eps=1e-8) for rows in _rows(a, b))
    return F.smooth_l1_loss(a, b, reduction="none").mean(1)


def absolute_cosine(a: Tensor, b: Tensor) -> Tensor:
    """How related two codes are, whatever the sign of the relation; (B,) in 0..1."""
    a, b = _units(a, b)
    return (a * b).sum(1).abs()
