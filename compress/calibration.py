"""Calibration: which images are looked at, and which range of each activation eight bits are to cover.

Four ways to choose the range, all from one histogram of each activation, are compared on held-out images by
:mod:`iekd.compress.quantize`.  Entropy and percentile are ONNX Runtime's own; what it lacks is the least squared error.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from iekd.compress.datasets.source import Labels
from iekd.compress.datasets.splits import balanced_subset
from iekd.deploy.backends import Array
from iekd.deploy.precision import activations
from iekd.errors import InputError

METHODS = ("minmax", "entropy", "percentile", "mse")
"""minmax: all values.  entropy: least Kullback-Leibler divergence (S. Migacz, "8-bit inference with TensorRT", 2017).
percentile: all but the outermost 0.01 %.  mse: least squared error of the rounded values (Banner et al., "Post training
4-bit quantization of convolutional networks for rapid-deployment", 2019)."""
BINS = 2048
ENTROPY_BINS = 512
"""A compromise: the library tries every width in a Python loop, 0.1 s an activation; 256 leave it too few to merge."""
PERCENTILE = 99.99
LEVELS = 256
CALIBRATION_IMAGES = 256
"""What calibrates a file unless told otherwise."""
JUDGING_IMAGES = 512
"""At most so many other training images decide between ways to quantise."""
Range = tuple[np.float32, np.float32]
Images = Callable[[], Iterator[Array]] | Array
"""Preprocessed images float32 (N, 3, H, W), or a function that gives them in batches, in the order of the labels."""


@dataclass(frozen=True)
class Histogram:
    """How often the values of one activation fell into ``BINS`` equal bins over -reach .. reach."""

    counts: NDArray[np.int64]
    lowest: float
    highest: float

    @property
    def reach(self) -> float:
        """Largest absolute value."""
        return max(abs(self.lowest), abs(self.highest))

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        edges = np.linspace(-self.reach, self.reach, len(self.counts) + 1)
        return (edges[:-1] + edges[1:]) / 2


class Calibration:
    """The chosen images, and what the network's activations are on them; computed once, when first asked for.

    Args:
        model: float32.
        images: chosen calibration images (N, 3, H, W).
    """

    def __init__(self, model: onnx.ModelProto, images: Array) -> None:
        self.model = model
        self.images = images
        self._histograms: dict[str, Histogram] = {}
        self._ranges: dict[str, dict[str, Range]] = {}

    def ranges(self, method: str) -> dict[str, Range]:
        """Lowest and highest value to represent, of every float activation by name."""
        if not self._histograms:
            self._histograms = collect_histograms(self.model, self.images)
        if method not in self._ranges:
            self._ranges[method] = {name: choose_range(found, method) for name, found in self._histograms.items()}
        return self._ranges[method]


def choose_images(images: Images, labels: NDArray[np.int64], *, count: int, seed: int) -> Array:
    """``count`` images, spread over the classes as evenly as these allow; the same for the same seed.

    Args:
        images: all that may be chosen.
        labels: class index of each (N,).
        count: to choose.
        seed: of the choice.

    Raises:
        InputError: fewer images than asked for, or another number than there are labels.
    """
    if count < 1 or count > len(labels):
        raise InputError(
            f"{count} calibration images were asked for, there are {len(labels)}.", "Ask for fewer, or give more."
        )
    wanted = balanced_subset(labels, count, seed, int(labels.max()) + 1)
    found, at = [], 0
    for batch in (images,) if isinstance(images, np.ndarray) else images():
        found.append(batch[wanted[(wanted >= at) & (wanted < at + len(batch))] - at])
        at += len(batch)
    if at != len(labels):
        raise InputError(f"there are {at} calibration images and {len(labels)} labels.", "Give one label an image.")
    return np.ascontiguousarray(np.concatenate(found), dtype=np.float32)


def choose_numbers(targets: Sequence[int] | Labels, wanted: int | None, seed: int) -> tuple[Labels, Labels]:
    """Numbers of the training images that calibrate, balanced over the classes, and of those that decide; shuffled.

    Args:
        targets: class indices of all (N,).
        wanted: how many calibrate.  None: ``CALIBRATION_IMAGES``, or half of all.
        seed: of the choice.

    Raises:
        InputError: none would be left to decide.
    """
    classes = np.asarray(targets)
    there = len(classes)
    count = wanted or min(CALIBRATION_IMAGES, max(1, there // 2))
    if count >= there:
        raise InputError(
            f"{count} calibration images were asked for, and there are {there} training images, of which some others "
            "decide between ways to quantise.",
            f"Ask for at most {max(1, there // 2)}, or give more.",
        )
    random = np.random.default_rng(seed)
    calibrating = balanced_subset(classes, count, seed, int(classes.max()) + 1)
    rest = np.setdiff1d(np.arange(there), calibrating)
    return random.permutation(calibrating), random.permutation(rest)[:JUDGING_IMAGES]


def calibrated_on_few(count: int) -> str:
    """What to tell where ``count`` images, chosen unasked, are fewer than calibrate otherwise; empty elsewhere."""
    return f"calibrated on {count} images, half of what there is" if count < CALIBRATION_IMAGES else ""


def collect_histograms(model: onnx.ModelProto, images: Array) -> dict[str, Histogram]:
    """Of every float activation.  Two passes: the first finds the reach, so that the bins never have to grow."""
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    for values in activations(model, images):
        for name, value in values.items():
            lowest[name] = float(np.minimum(lowest.get(name, 0.0), value.min(initial=0.0)))  # unlike min, keeps NaN
            highest[name] = float(np.maximum(highest.get(name, 0.0), value.max(initial=0.0)))
    _refuse_infinite(lowest, highest)
    counts = {name: np.zeros(BINS, np.int64) for name in lowest}
    for values in activations(model, images):
        for name, value in values.items():
            reach = max(-lowest[name], highest[name]) or 1.0
            counts[name] += np.histogram(value, BINS, (-reach, reach))[0]
    return {name: Histogram(counts[name], lowest[name], highest[name]) for name in counts}


def choose_range(histogram: Histogram, method: str) -> Range:
    """The range that ``method`` chooses; holds 0 always, and never more than the values seen."""
    low, high = histogram.lowest, histogram.highest
    if method != "minmax" and histogram.reach:
        low, high = {"entropy": _entropy, "percentile": _percentile, "mse": _least_squares}[method](histogram)
    return np.float32(max(min(low, 0.0), histogram.lowest)), np.float32(min(max(high, 0.0), histogram.highest))


def _entropy(histogram: Histogram) -> tuple[float, float]:
    return _library(histogram, "entropy", ENTROPY_BINS)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    return _library(histogram, "percentile", BINS)


def _library(histogram: Histogram, method: str, bins: int) -> tuple[float, float]:
    """ONNX Runtime's choice for our histogram."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method, symmetric=False, num_bins=bins, num_quantized_bins=128, percentile=PERCENTILE, scenario="same"
    )
    counts = histogram.counts.reshape(bins, -1).sum(1)
    edges = np.linspace(-histogram.reach, histogram.reach, bins + 1, dtype=np.float32)
    ends = np.float32(histogram.lowest), np.float32(histogram.highest)
    collector.histogram_dict = {"it": (counts, edges, *ends, np.float32(histogram.reach))}
    with contextlib.redirect_stdout(io.StringIO()):
        low, high = collector.compute_collection_result()["it"][:2]
    return float(low), float(high)


def _least_squares(histogram: Histogram) -> tuple[float, float]:
    """Both ends drawn in by the share that makes the squared error of the rounded values least."""
    used = histogram.counts > 0
    values, weights = histogram.centres[used], histogram.counts[used]
    best, least = (histogram.lowest, histogram.highest), np.inf
    for share in np.linspace(1.0, 0.1, 91):
        low, high = histogram.lowest * share, histogram.highest * share
        step = (high - low) / (LEVELS - 1)
        rounded = np.round((values.clip(low, high) - low) / step) * step + low
        error = float((weights * (values - rounded) ** 2).sum())
        if error < least:
            best, least = (low, high), error
    return best


def _refuse_infinite(lowest: dict[str, float], highest: dict[str, float]) -> None:
    bad = [name for name in lowest if not np.isfinite(highest[name] - lowest[name])]
    if bad:
        raise InputError(f"the network gives values that are not finite at {bad[0]}.", "Train it again.")
