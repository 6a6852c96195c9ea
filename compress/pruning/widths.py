"""How many channels stay: from scores and one ratio to widths that the target likes."""

from __future__ import annotations

import math

import torch

from iekd.compress.pruning.graph import Cut, Dimension

LEAST_KEPT = 0.1
"""Of every dimension at least this share stays: global ranking would otherwise starve single layers (128 -> 4)."""


def choose_cuts(dimensions: list[Dimension], ratio: float, scope: str, round_to: int) -> list[Cut]:
    """What to remove for ``ratio``, the share of channels that should go.

    Widths are rounded to the nearest multiple, and never to less than one; a dimension that rounding leaves as it is
    does not appear.

    Args:
        dimensions: all that may be cut.
        ratio: 0..1.
        scope: ``uniform`` takes this share of every dimension, ``global`` the lowest scores of all together.
        round_to: widths become multiples of it, where they change.
    """
    if not dimensions:
        return []
    threshold = float(torch.quantile(torch.cat([d.scores for d in dimensions]), ratio)) if scope == "global" else 0.0
    cuts = []
    for dimension in dimensions:
        wanted = int((dimension.scores > threshold).sum()) if scope == "global" else (1 - ratio) * dimension.units
        keep = _rounded(max(wanted, LEAST_KEPT * dimension.units), dimension, round_to)
        if keep < dimension.units:
            order = torch.argsort(dimension.scores, stable=True)
            cuts.append(Cut(dimension, tuple(sorted(order[: dimension.units - keep].tolist()))))
    return cuts


def _rounded(wanted: float, dimension: Dimension, round_to: int) -> int:
    step = _step(dimension, round_to)
    return min(dimension.units, max(step, step * round(wanted / step)))


def _step(dimension: Dimension, round_to: int) -> int:
    """Units that make up a multiple of ``round_to`` channels; each head by itself, as its products run by head."""
    if dimension.whole_blocks:
        return 1
    return round_to if dimension.heads else round_to // math.gcd(round_to, dimension.blocks)
