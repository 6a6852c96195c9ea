"""What a data set's reader hands over, before anything is split, limited or checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iekd.compress.datasets.source import Source
from iekd.errors import InputError


@dataclass(frozen=True)
class RawData:
    """A data set as it was found.

    Args:
        name: what the user called it.
        classes: names, by class index.
        train: training images, or all images where there is no ``val``.
        val: validation images; None: a share of ``train`` must be held out.
        image_size: side of the input, pixels; None: follow from the images.
        augmentation: name of a preset; None: follow from the images' size.
    """

    name: str
    classes: tuple[str, ...]
    train: Source
    val: Source | None
    image_size: int | None = None
    augmentation: str | None = None


def check_same_classes(ours: Sequence[str], theirs: Sequence[str], here: str, there: str) -> None:
    """Refuse two parts, called ``here`` and ``there``, of different classes.

    Raises:
        InputError: names the classes that only one of them has.
    """
    differing = []
    for mine, yours, part in ((ours, theirs, here), (theirs, ours, there)):
        only = sorted(set(mine) - set(yours))
        if only:
            differing.append(f"only in {part} {'is' if len(only) == 1 else 'are'} {listed(only)}")
    if differing:
        raise InputError(f"the classes differ: {'; '.join(differing)}.", "Both parts need the same classes.")
    if tuple(ours) != tuple(theirs):
        raise InputError(f"{here} and {there} list the same classes in another order.", "Give both the same order.")


def listed(names: Sequence[str]) -> str:
    """The first five names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
