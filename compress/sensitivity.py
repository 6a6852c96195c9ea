"""Which layers cost the most when quantised, and how many of them must stay in float for a limit to hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iekd.compress.calibration import Calibration
from iekd.compress.quantizers import Quantizer
from iekd.deploy.backends import Array, Session
from iekd.deploy.graph_checks import Graph

IMAGES = 64
"""Calibration images that the cost is measured on."""
BATCH = 16


@dataclass(frozen=True)
class LayerCost:
    """What quantising one layer, and nothing else, does to the logits."""

    layer: str
    """Name of the ONNX node."""
    error: float
    """Energy of the logits' change / energy of the logits."""


def layer_names(calibration: Calibration) -> list[str]:
    """The layers that can be quantised or kept, in the order of the network."""
    return [node.name for node in Graph(calibration.model).layers()]


def rank_layers(
    calibration: Calibration, quantizer: Quantizer, method: str, open_file: Callable[[Path], Session]
) -> tuple[LayerCost, ...]:
    """Every layer's cost, the dearest first; measured on calibration images, so that held-out ones stay unseen.

    Args:
        calibration: model and images.
        quantizer: makes ONNX files.
        method: of calibration.
        open_file: as the scheme wants it; not every session computes every scheme's files rightly.
    """
    images = calibration.images[:IMAGES]
    layers = layer_names(calibration)

    def logits(kept: list[str]) -> Array:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trial.onnx"
            quantizer.write(path, method, kept)
            session = open_file(path)
            answers = [session.run(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
            session.close()
        return np.concatenate(answers)

    exact = logits(layers)
    found = []
    for layer in layers:
        answers = logits([other for other in layers if other != layer])
        found.append(LayerCost(layer, relative_error(answers, exact)))
    return tuple(sorted(found, key=lambda cost: -cost.error))


def relative_error(answers: Array, exact: Array) -> float:
    """Energy of the difference / energy of ``exact``."""
    return float(((answers - exact) ** 2).sum() / max(float((exact**2).sum()), 1e-12))


def exceeds(drop: float, limit: float) -> bool:
    """Is more accuracy lost than allowed?  Shares of images are quotients: their difference is off by a rounding."""
    return drop > limit + 1e-9


def fewest_kept(
    ranking: Sequence[LayerCost], drop_when: Callable[[tuple[str, ...]], float], limit: float
) -> int | None:
    """How many of the dearest layers must stay in float for the drop to be within ``limit``.

    Doubles the number until the limit holds, then halves the gap: a few trials instead of one for each layer.

    Args:
        ranking: dearest first.
        drop_when: accuracy lost with these layers in float.
        limit: on it.

    Returns:
        None where the limit does not hold even with all layers but one in float.
    """
    most = len(ranking) - 1
    names = [cost.layer for cost in ranking]
    low, high = 0, 1
    while high <= most and exceeds(drop_when(tuple(names[:high])), limit):
        low, high = high, min(2 * high, most) if high < most else most + 1
    if high > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if exceeds(drop_when(tuple(names[:middle])), limit):
            low = middle
        else:
            high = middle
    return high
