"""Seeded, stratified choices of images by their labels alone."""

from __future__ import annotations

import numpy as np

from iekd.compress.datasets.source import Labels
from iekd.errors import InputError


def stratified_split(targets: Labels, fraction: float, seed: int, names: tuple[str, ...]) -> tuple[Labels, Labels]:
    """Indices of the training and of the validation part, each ascending.

    Of every class the share ``fraction``, rounded, goes to validation, but at least one image and never all.

    Args:
        targets: class indices (N,).
        fraction: share for validation, in (0, 1).
        seed: of the choice.
        names: of the classes, for messages.

    Raises:
        InputError: ``fraction`` out of range, or a class of a single image.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--val-fraction {fraction} is not between 0 and 1.", "0.2 keeps a fifth for validation.")
    ranks, sizes = _ranks(targets, len(names), seed)
    for name, size in zip(names, sizes, strict=True):
        if size == 1:
            raise InputError(
                f"class '{name}' has one image, which cannot be both in train and in val.",
                "Add images of it, or remove the class.",
            )
    held_out = np.clip(np.round(sizes * fraction), 1, np.maximum(sizes - 1, 1))
    in_val = ranks < held_out[targets]
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def balanced_subset(targets: Labels, limit: int, seed: int, classes: int) -> Labels:
    """Indices, ascending, of ``limit`` images spread over the classes as evenly as their sizes allow.

    A smaller limit chooses a subset of what a larger one chooses.
    """
    ranks, _ = _ranks(targets, classes, seed)
    return np.sort(np.lexsort((targets, ranks))[:limit])


def _ranks(targets: Labels, classes: int, seed: int) -> tuple[Labels, Labels]:
    """Each image's place in a random order of its own class (N,), and the number of images of each class (C,)."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    sizes = np.bincount(targets, minlength=classes).astype(np.int64)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    ranks = np.empty(len(targets), dtype=np.int64)
    ranks[by_class] = np.arange(len(targets)) - np.repeat(starts, sizes)
    return ranks, sizes
