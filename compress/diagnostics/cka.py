"""Linear centred kernel alignment: how like one another two networks represent the same images.

CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with linear kernels (Kornblith et al., ICML 2019,
arXiv 1905.00414).  HSIC is the unbiased estimate (Song et al., JMLR 13, 2012) over all images at once: the biased one
is well above 0 for unrelated representations of many features.  The unbiased one may be just below 0 for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iekd.deploy.results import Interval
from iekd.deploy.statistics import CONFIDENCE

FEWEST_IMAGES = 8
_COLUMNS = 16_384


class Likeness(NamedTuple):
    """CKA of a representation with the reference, and of each redrawing of the images."""

    value: float
    draws: NDArray[np.float64]

    def interval(self) -> Interval:
        """With its 95 % bootstrap interval."""
        return _interval(self.value, self.draws)

    def less(self, other: Likeness) -> Interval:
        """This one less the other, on the same redrawings."""
        return _interval(self.value - other.value, self.draws - other.draws)


def likeness(
    reference: Tensor, others: Mapping[str, Tensor], *, draws: int = 1000, seed: int = 0
) -> dict[str, Likeness | None]:
    """Linear CKA of each of ``others`` with ``reference``, with the bootstrap over images that intervals need.

    A redrawing counts image i w_i times; a pair of an image with itself stays left out, as in the estimate, or every
    redrawing would seem more alike than the images are (weighted bootstrap of U-statistics: Janssen 1994, Journal of
    Statistical Planning and Inference 38).

    Args:
        reference: features (N, ...) of N images, :data:`FEWEST_IMAGES` or more.
        others: features (N, ...) of the same images, by name.
        draws: bootstrap samples.
        seed: of the redrawing.

    Returns:
        By name; None for features that are the same for every image, which have no CKA.
    """
    count = len(reference)
    if count < FEWEST_IMAGES:
        raise ValueError(f"CKA needs {FEWEST_IMAGES} images or more, not {count}")
    redrawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    weights = torch.from_numpy(np.vstack([np.ones(count), redrawn])).t().contiguous()
    own = gram(reference)
    own_norm = hsic(own, own, weights)
    found: dict[str, Likeness | None] = {}
    for name, features in others.items():
        if is_constant(reference) or is_constant(features):
            found[name] = None
            continue
        kernel = gram(features)
        shared = hsic(own, kernel, weights)
        ratio = (shared / (own_norm * hsic(kernel, kernel, weights)).clamp(min=0).sqrt()).numpy()
        found[name] = Likeness(float(ratio[0]), ratio[1:])
    return found


def random_differences(
    reference: Tensor, maps: Tensor, first: int, *, splits: int = 200, seed: int = 0
) -> NDArray[np.float64]:
    """CKA of ``first`` random channels less that of the other channels, for many random splits.

    What a difference between two parts is to be compared with: any two halves of a network differ a little, whatever it
    was trained for.

    Args:
        reference: features (N, ...).
        maps: channels (N, C, ...) to be split.
        first: channels in the first part, 1 to C - 1.
        splits: how many.
        seed: of the splits.

    Returns:
        (splits,)
    """
    own, whole = gram(reference), gram(maps)
    centred = maps - maps.mean(0)
    generator = torch.Generator().manual_seed(seed)
    one = torch.ones(len(maps), 1, dtype=torch.float64)

    def cka(kernel: Tensor) -> float:
        return float(hsic(own, kernel, one) / (hsic(own, own, one) * hsic(kernel, kernel, one)).clamp(min=0).sqrt())

    found = []
    for _ in range(splits):
        chosen = torch.randperm(maps.shape[1], generator=generator)[:first]
        part = centred.index_select(1, chosen).flatten(1)
        kernel = (part @ part.t()).double()
        found.append(cka(kernel) - cka(whole - kernel))  # a linear kernel is the sum of its channels'
    return np.array(found)


def gram(features: Tensor) -> Tensor:
    """Linear kernel (N, N), float64, of features (N, ...) less their mean over the images."""
    flat = features.flatten(1)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for columns in torch.split(flat, _COLUMNS, dim=1):
        centred = columns.double() - columns.double().mean(0)
        total += centred @ centred.t()
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


def is_constant(features: Tensor) -> bool:
    """Are the features (N, ...) the same for every image?"""
    return bool((features == features[:1]).all())


def _interval(value: float, draws: NDArray[np.float64]) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(value=value, low=float(low), high=float(high))
