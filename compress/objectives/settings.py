"""Weights and choices of an objective."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Weights and choices; the defaults are the published ones where the paper gives one.

    The paper's weight of 50 multiplies a mean over n = 2,048 elements, whose size falls as 1 / sqrt(n).  Our distance
    is that mean times sqrt(n), so the same weight is 50 / sqrt(2048) = 1.105 here, whatever the factor's size.
    """

    task_weight: float = 1.0
    kd_weight: float = 1.0
    temperature: float = 4.0
    inherit_weight: float = 1.105
    explore_weight: float = 1.105
    transfer_weight: float = 1.105
    """Of a plain transfer, without the lift."""
    inherit_fraction: float = 0.5
    split: str = "natural"
    seed: int = 0
    factor_channels: int = 128
    """Most channels of a factor; at most half of the teacher's tap."""
    hidden_channels: int = 256
    """Channels to which a wider tap is projected first: full-width 3x3 convolutions would cost more than a student."""
