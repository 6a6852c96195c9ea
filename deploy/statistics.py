"""Intervals for what we claim: percentiles, ratios of medians, proportions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from iekd.deploy.results import Distribution, Interval

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


def distribution(values: Floats) -> Distribution:
    """Everything that is reported of ``values``, at least two; nothing is clipped."""
    return Distribution(
        minimum=float(values.min()),
        mean=float(values.mean()),
        median=percentile(values, 50),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
        maximum=float(values.max()),
        cv=variation(values),
    )


def variation(values: Floats) -> float:
    """Coefficient of variation: standard deviation / mean; 0 where all are zero."""
    mean = float(values.mean())
    return float(values.std(ddof=1)) / mean if mean else 0.0


def mean_ratio(ratios: Floats) -> Interval:
    """Geometric mean of independent measurements of one ratio, with Student's 95 % interval on their logarithms.

    Args:
        ratios: at least two, all positive.
    """
    logs = np.log(ratios)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1)) * float(logs.std(ddof=1)) / np.sqrt(len(logs))
    middle = float(logs.mean())
    return Interval(value=float(np.exp(middle)), low=float(np.exp(middle - half)), high=float(np.exp(middle + half)))


def rate(ends: Floats, each: float, *, windows: int = 20) -> Interval:
    """``each`` times the number of events a second, with Student's 95 % interval over windows of equal length.

    Args:
        ends: moments of the events in seconds, from 0, at least two; the last one ends the measurement.
        each: what one event counts for.
        windows: that the time is cut into; neighbouring calls share the machine's mood, windows hardly do.
    """
    span = float(ends.max())
    counts = np.histogram(ends, bins=windows, range=(0.0, span))[0] * each / (span / windows)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, windows - 1) * counts.std(ddof=1) / np.sqrt(windows))
    value = len(ends) * each / span
    return Interval(value=value, low=max(0.0, value - half), high=value + half)


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
