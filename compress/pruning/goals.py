"""How far to prune: a share of the channels, a share of the computation, or a latency that is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from torch import nn

from iekd.errors import InputError

MOST_RATIO = 0.95
"""The largest share of channels that a search tries."""
HALVINGS = 7
"""Of the interval of ratios: 0.95 / 2**7 is finer than rounding to 8 lets most layers follow."""
MOST_REFUSALS = 3
"""In succession from the largest ratio, after which a network counts as one that cannot be pruned."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Ratio:
    """Remove this share of the channels, 0 < value < 1."""

    value: float

    def __post_init__(self) -> None:
        _check_share("pruning ratio", self.value)


@dataclass(frozen=True)
class Macs:
    """Remove at least this share of the multiply-accumulates, 0 < fewer < 1."""

    fewer: float

    def __post_init__(self) -> None:
        _check_share("share of MACs to remove", self.fewer)


@dataclass(frozen=True)
class Latency:
    """Remove channels until one image takes at most this long.

    Attributes:
        milliseconds: the limit.
        measure: milliseconds of a network on the target, such as :func:`iekd.compress.pruning.latency.onnx_latency`.
    """

    milliseconds: float
    measure: Callable[[nn.Module], float]

    def __post_init__(self) -> None:
        if not 0 < self.milliseconds < math.inf:
            raise InputError(f"latency goal {self.milliseconds} ms is not a duration.", "Give milliseconds above 0.")


@dataclass(frozen=True)
class LatencyShare:
    """Remove channels until one image takes at most this share of what it takes the network that is given.

    Attributes:
        left: that share, 0 < left < 1.
        measure: latency of a network as a share of the given one's, both in one measurement, so that a machine that
            grows slower meanwhile slows both: such as :func:`iekd.compress.pruning.latency.latency_beside`.
    """

    left: float
    measure: Callable[[nn.Module], float]

    def __post_init__(self) -> None:
        _check_share("share of the latency", self.left)


Goal: TypeAlias = Ratio | Macs | Latency | LatencyShare


@dataclass(frozen=True)
class Trial(Generic[Found]):
    """One ratio, what pruning by it gives, and the figure that the goal limits."""

    ratio: float
    result: Found
    figure: float


def least_ratio(attempt: Callable[[float], Trial[Found]], limit: float) -> tuple[Trial[Found] | None, Trial[Found]]:
    """Bisect for the smallest ratio whose figure is at most ``limit``.

    Args:
        attempt: prunes by a ratio and tells the figure, which falls as the ratio rises.
        limit: what the figure must not exceed.

    Returns:
        The best trial that meets the limit (None where none does), and that of the largest ratio that can be had.

    Raises:
        InputError: the network can be pruned by none of the ratios, of which the first are tried.
    """
    low, high, best, most, refused = 0.0, MOST_RATIO, None, None, 0
    ratio = MOST_RATIO
    for _ in range(HALVINGS + 1):
        try:
            trial = attempt(ratio)
        except InputError:  # some networks lose a whole layer at large ratios
            refused += 1
            if most is None and refused == MOST_REFUSALS:
                raise
            high = ratio
        else:
            most = trial if most is None or trial.ratio > most.ratio else most
            if trial.figure <= limit:
                best, high = trial, ratio
            elif ratio == MOST_RATIO:
                break
            else:
                low = ratio
        ratio = (low + high) / 2
    assert most is not None, "or the last of the refusals was raised"
    return best, most


def _check_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{what} {value:g} is outside (0, 1).", "Give a share such as 0.5.")
