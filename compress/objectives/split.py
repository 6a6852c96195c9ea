"""Which of the student's channels inherit and which explore."""

from __future__ import annotations

import torch
from torch import Tensor

from iekd.compress.objectives.alignment import FEWEST_IMAGES, gram, kernel_alignment
from iekd.errors import InputError, unknown_name

SPLITS = ("natural", "random", "relevance")


def split_channels(channels: int, fraction: float, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the inheriting and of the exploring channels (int64, ascending).

    Args:
        channels: of the student's tap.
        fraction: share that inherits, 0..1; 0 leaves exploration alone, 1 the plain transfer.
        split: ``natural`` (the first channels inherit), ``random`` (a fixed, seeded permutation), or ``relevance``,
            which gives the natural one until :func:`channel_relevance` is known.
        seed: of the permutation.

    Raises:
        InputError: unknown split, or one that leaves a part empty without being 0 or 1.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if split == "random":
        return divide(torch.randperm(channels, generator=torch.Generator().manual_seed(seed)), fraction)
    return divide(torch.arange(channels), fraction)


def divide(order: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The first share of ``order`` (channels,), and the rest, each ascending.

    Raises:
        InputError: a part is left empty though the fraction is neither 0 nor 1.
    """
    channels = len(order)
    count = round(channels * fraction)
    if 0 < fraction < 1 and count in (0, channels):
        raise InputError(
            f"--inherit-fraction {fraction} of {channels} channels leaves a part empty.",
            "Choose a fraction nearer to 0.5, or 0 or 1 to do without that part.",
        )
    return order[:count].sort().values, order[count:].sort().values


@torch.no_grad()
def channel_relevance(tap: Tensor, code: Tensor) -> Tensor:
    """How like the teacher's code each channel of the student is: linear CKA over a probe batch; (channels,) in -1..1.

    The unbiased estimate of :mod:`alignment`, which compares maps and codes of any shapes.  The usual, biased one grows
    with the dimensions that a channel uses, so that on wide maps noise would outrank a channel that is related.

    Args:
        tap: the student's maps (B, channels, h, w).
        code: the teacher's codes (B, ...) of the same images.

    Raises:
        InputError: fewer images than the estimate needs.
    """
    if len(tap) < FEWEST_IMAGES:
        raise InputError(
            f"a split by relevance needs {FEWEST_IMAGES} training images or more, not {len(tap)}.",
            "Use --split natural or random.",
        )
    teacher = gram(code)
    return torch.stack([kernel_alignment(gram(channel), teacher) for channel in tap.unbind(1)])
