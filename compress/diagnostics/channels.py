"""Which channels of a map say anything at all."""

from __future__ import annotations

from torch import Tensor

STILL = 1e-3
"""Of a tap that is not rectified: a channel whose spread is below this share of the median channel's says nothing."""


def is_rectified(tap: Tensor) -> bool:
    """Is no value of the maps (N, C, H, W) negative, as after ReLU?"""
    return bool((tap >= 0).all())


def active_channels(tap: Tensor) -> Tensor:
    """Whether each channel is ever active on any image; bool (C,).

    After a rectifier, active means above zero anywhere.  Hard-swish, GELU, linear bottlenecks and tokens have no zero
    that means silence; there a channel is active if it varies over images and positions: its standard deviation is more
    than :data:`STILL` of the median channel's.

    Args:
        tap: maps (N, C, H, W).
    """
    channels = tap.transpose(0, 1).flatten(1)
    if is_rectified(tap):
        return (channels > 0).any(1)
    spread = channels.double().std(1)
    return spread > STILL * spread.median()
