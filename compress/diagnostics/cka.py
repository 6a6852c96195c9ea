"""How like one another two networks represent the same images: linear CKA with its interval, and what chance gives.

The estimate is that of :mod:`iekd.compress.objectives.alignment`, over all images at once, not clipped: it may be just
below 0 for unrelated representations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iekd.compress.objectives.alignment import gram, hsic, least_norm
from iekd.deploy.results import Interval
from iekd.deploy.statistics import CONFIDENCE

FEWEST_IMAGES = 8


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
        ratio = _cka(own, own_norm, gram(features), weights).numpy()
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

    own_norm = hsic(own, own, one)

    def cka(kernel: Tensor) -> float:
        return float(_cka(own, own_norm, kernel, one))

    found = []
    for _ in range(splits):
        chosen = torch.randperm(maps.shape[1], generator=generator)[:first]
        part = centred.index_select(1, chosen).flatten(1)
        kernel = (part @ part.t()).double()
        found.append(cka(kernel) - cka(whole - kernel))  # a linear kernel is the sum of its channels'
    return np.array(found)


def is_constant(features: Tensor) -> bool:
    """Are the features (N, ...) the same for every image?"""
    return bool((features == features[:1]).all())


def _cka(own: Tensor, own_norm: Tensor, kernel: Tensor, weights: Tensor) -> Tensor:
    """CKA of two Gram matrices (N, N) for each redrawing in ``weights`` (N, draws); ``own_norm`` is HSIC of the first.

    0 where nothing but rounding is left of one side's own HSIC: it says the same of all images but one.
    """
    norms = own_norm * hsic(kernel, kernel, weights)
    least = least_norm(own, kernel)
    return torch.where(norms > least, hsic(own, kernel, weights) / norms.clamp(min=least).sqrt(), 0)


def _interval(value: float, draws: NDArray[np.float64]) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(value=value, low=float(low), high=float(high))
