"""Intervals for what we claim: percentiles, ratios of medians, proportions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from iekd.deploy.results import Interval

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


def percentile(values: Floats, q: float) -> Interval:
    """The ``q``-th percentile with a distribution-free 95 % interval from binomial order statistics.

    The interval's ends are order statistics whose ranks the true percentile lies between with at least that
    probability (Hahn and Meeker, Statistical Intervals, 1991, section 5.2).  Where there are too few values for an
    upper (or lower) rank, the largest (smallest) value stands in.

    Args:
        values: at least one.
        q: 0..100.
    """
    ordered = np.sort(values)
    n, p = len(ordered), q / 100
    tail = (1 - CONFIDENCE) / 2
    low = int(stats.binom.ppf(tail, n, p))
    high = int(stats.binom.ppf(1 - tail, n, p))
    return Interval(
        value=float(np.percentile(ordered, q)),
        low=float(ordered[min(max(low - 1, 0), n - 1)]),
        high=float(ordered[min(high, n - 1)]),
    )


def wilson(correct: int, total: int) -> Interval:
    """A proportion with Wilson's 95 % score interval (E. B. Wilson 1927)."""
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Interval(value=p, low=float(max(0.0, centre - half)), high=float(min(1.0, centre + half)))


def ratio_of_medians(blocks_a: list[Floats], blocks_b: list[Floats], *, seed: int = 0, draws: int = 2000) -> Interval:
    """median(a) / median(b) with a 95 % bootstrap interval over interleaved blocks.

    Whole blocks are redrawn, a's and b's of one block together, because calls within a block share the machine's mood.

    Args:
        blocks_a: latencies of a, one array a block.
        blocks_b: latencies of b in the same blocks.
        seed: of the redrawing.
        draws: bootstrap samples.
    """
    pairs = list(zip(blocks_a, blocks_b, strict=True))
    value = float(np.median(np.concatenate(blocks_a)) / np.median(np.concatenate(blocks_b)))
    medians = np.log([[np.median(a), np.median(b)] for a, b in pairs])
    chosen = np.random.default_rng(seed).integers(0, len(pairs), (draws, len(pairs)))
    redrawn = np.median(medians[chosen], axis=1)
    spread = redrawn[:, 0] - redrawn[:, 1]
    low, high = np.percentile(spread - np.median(spread), [2.5, 97.5])
    return Interval(value=value, low=value * float(np.exp(low)), high=value * float(np.exp(high)))


def ratio_of_accuracies(student: NDArray[np.bool_], teacher: NDArray[np.bool_], *, seed: int = 0) -> Interval:
    """Student accuracy / teacher accuracy with a 95 % bootstrap interval, paired: both answered the same images.

    Args:
        student: right or wrong, an image each.
        teacher: the same, in the same order.
        seed: of the redrawing.
    """
    n = len(student)
    cells = np.array(
        [(student & teacher).sum(), (student & ~teacher).sum(), (~student & teacher).sum(), (~student & ~teacher).sum()]
    )
    draws = np.random.default_rng(seed).multinomial(n, cells / n, size=10_000)
    ratios = (draws[:, 0] + draws[:, 1]) / np.maximum(draws[:, 0] + draws[:, 2], 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(value=float(student.sum() / max(1, teacher.sum())), low=float(low), high=float(high))
