"""Linear centred kernel alignment (CKA): how like one another two representations of the same images are.

CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with linear kernels (Kornblith et al., ICML 2019,
arXiv 1905.00414), from the unbiased estimate of HSIC (Song et al., JMLR 13, 2012): the usual, biased one is far above 0
for unrelated representations of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST_IMAGES = 4
"""With fewer there is no unbiased estimate."""
_COLUMNS = 16_384
_ROUNDING = 1e-12


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """CKA of two representations of a batch, with gradient; a scalar in -1..1, float32 or wider.

    The estimate is an inner product of centred kernels, whence its bounds (Szekely and Rizzo, Annals of Statistics
    42, 2014).  Unrelated ones have 0 in the mean, so half of the time a little less; clipping there would bias the
    gradient.  A representation that is the same for every image, or for all but one, has 0, and so has a batch of fewer
    than four images.

    Args:
        a: (B, ...).
        b: (B, ...) of the same images.
    """
    if len(a) < FEWEST_IMAGES:
        return b.float().sum() * 0
    return kernel_alignment(gram(a), gram(b)).to(torch.promote_types(b.dtype, torch.float32))


def kernel_alignment(a: Tensor, b: Tensor) -> Tensor:
    """:func:`alignment` of two kernels (B, B) of the same images, four or more."""
    once = torch.ones(len(a), 1, dtype=torch.float64, device=a.device)
    shared = hsic(a, b, once)[0]
    own = hsic(a, a, once)[0] * hsic(b, b, once)[0]
    defined = own > least_norm(a, b)
    found = shared / torch.where(defined, own, 1).sqrt()  # a square root of 0 has no gradient
    return torch.where(defined, found, 0)


def least_norm(a: Tensor, b: Tensor) -> Tensor:
    """What HSIC(a, a) HSIC(b, b) has to be more than to be more than rounding, for two kernels (B, B); a scalar.

    It is less where one kernel says the same of all images but one, which leaves a pair nothing to agree on.
    """
    return _ROUNDING * a.detach().square().mean() * b.detach().square().mean()


def gram(features: Tensor) -> Tensor:
    """Linear kernel (N, N), float64, of features (N, ...) less their mean over the images."""
    flat = features.flatten(1)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for columns in torch.split(flat, _COLUMNS, dim=1):
        centred = columns.double() - columns.double().mean(0)
        total = total + centred @ centred.t()
    return total


def hsic(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The unbiased HSIC of two kernels, for each weighting of the images.

    With weights of 1 it is Song et al.'s: the mean of a_ij b_ij + a_ij b_qr - 2 a_ij b_iq over distinct i, j, q, r.

    Args:
        a: kernel (N, N).
        b: kernel (N, N).
        weights: how often each image counts, (N, R).

    Returns:
        (R,)
    """
    a, b = a - a.diag().diag(), b - b.diag().diag()
    w, w2 = weights, weights**2
    aw, bw = a @ w, b @ w
    abw, abw2 = (a * b) @ w, (a * b) @ w2
    pairs = (w * abw).sum(0)
    triples = (w * aw * bw).sum(0) - (w * abw2).sum(0)
    quadruples = (w * aw).sum(0) * (w * bw).sum(0) - 4 * (w2 * aw * bw).sum(0) + 2 * (w2 * abw2).sum(0)
    s1, s2, s3, s4 = (weights.pow(power).sum(0) for power in (1, 2, 3, 4))
    return (
        pairs / (s1**2 - s2)
        + quadruples / (s1**4 - 6 * s1**2 * s2 + 3 * s2**2 + 8 * s1 * s3 - 6 * s4)
        - 2 * triples / (s1**3 - 3 * s1 * s2 + 2 * s3)
    )
