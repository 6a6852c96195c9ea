"""Which of the student's channels inherit and which explore."""

from __future__ import annotations

import torch
from torch import Tensor

from iekd.errors import InputError


def split_channels(channels: int, fraction: float, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the inheriting and of the exploring channels (int64).

    Args:
        channels: of the student's tap.
        fraction: share that inherits, 0..1; 0 leaves exploration alone, 1 the plain transfer.
        split: ``natural`` (the first channels inherit) or ``random`` (a fixed, seeded permutation).
        seed: of the permutation.

    Raises:
        InputError: unknown split, or one that leaves a part empty without being 0 or 1.
    """
    if split == "natural":
        order = torch.arange(channels)
    elif split == "random":
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
    else:
        raise InputError(f"unknown split '{split}'.", "Valid: natural, random.")
    count = round(channels * fraction)
    if 0 < fraction < 1 and count in (0, channels):
        raise InputError(
            f"--inherit-fraction {fraction} of {channels} channels leaves a part empty.",
            "Choose a fraction nearer to 0.5, or 0 or 1 to do without that part.",
        )
    return order[:count].sort().values, order[count:].sort().values
