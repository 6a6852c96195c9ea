"""A data set by its name: found, split, limited and checked, ready to be trained and measured on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.datasets.mapped import MappedSource
from iekd.compress.datasets.names import read
from iekd.compress.datasets.raw import RawData, check_same_classes, listed
from iekd.compress.datasets.source import ImageSource, Labels, Source, Subset, evenly_spaced
from iekd.compress.datasets.splits import balanced_subset, stratified_split
from iekd.compress.datasets.verify import Progress, unreadable
from iekd.errors import InputError

__all__ = ["ImageData", "ImageSource", "default_cache_dir", "load_data", "wrap_datasets"]

_SIZE_SAMPLES = 256
_DIGEST_SAMPLES = 16
_SMALL = 64


@dataclass(frozen=True)
class ImageData:
    """Images to train on and images to measure on."""

    name: str
    """What the user called it."""
    classes: tuple[str, ...]
    """Names, by class index."""
    train: ImageSource
    val: ImageSource
    digest: str
    """Identity of images, labels and split, hexadecimal."""
    skipped: int
    """Unreadable images left out."""
    default_size: int
    """Side of the model's input that suits the images, pixels."""
    augmentation: str
    """Preset that suits the images."""

    @property
    def in_memory(self) -> bool:
        """Images need no decoding."""
        return bool(getattr(self.train, "in_memory", False))


def load_data(
    spec: str,
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
    limit: int | None = None,
    val_limit: int | None = None,
    cache_dir: Path | None = None,
    on_checked: Progress | None = None,
) -> ImageData:
    """The data set that ``spec`` names.

    Args:
        spec: ``digits``, ``folder:PATH``, or a name of timm's ``create_dataset`` with, after a colon, where it lies.
        val_fraction: share to hold out, where the data has no validation part.
        seed: of the split and of the subsets.
        skip_bad_images: leave unreadable images out, and count them, instead of stopping.
        limit: train on a balanced subset of this many images.
        val_limit: the same for validation.
        cache_dir: for what need not be done twice; None: the user's cache folder.
        on_checked: told, while images are checked, how many of how many are.

    Raises:
        InputError: an unknown name, or data that cannot be used; says which image, class or folder, and why.
        EnvironmentMissingError: a package that this kind of data needs is not installed.
    """
    cache_dir = cache_dir or default_cache_dir()
    raw = read(spec, cache_dir)
    _refuse_unusable(raw)
    train, val = _split(raw, val_fraction, seed)
    train = _limited(train, limit, seed, len(raw.classes), "--train-limit")
    val = _limited(val, val_limit, seed, len(raw.classes), "--val-limit")
    train, bad_train = _readable(train, skip_bad_images, cache_dir, on_checked)
    val, bad_val = _readable(val, skip_bad_images, cache_dir, on_checked)
    return _described(raw, train, val, bad_train + bad_val)


def wrap_datasets(train: Any, val: Any, classes: Sequence[str] | None = None) -> ImageData:
    """Data sets of the user's own, as :class:`ImageData`.

    Args:
        train: map-style; each item is (image, class index), the image a PIL image, a uint8 array (H, W, 3), or a tensor
            (3, H, W), uint8 or of 0..1.  It must be the image itself, not augmented and not normalised.
        val: likewise.
        classes: names; None: the data sets' ``classes``, or the numbers.

    Raises:
        InputError: items of another kind, an image that differs from one reading to the next, or classes that differ.
    """
    sources = MappedSource(train, "train"), MappedSource(val, "val")
    count = int(max(source.targets.max() for source in sources)) + 1
    named = _own_names(train, val) if classes is None else [str(name) for name in classes]
    names = tuple(named or (str(number) for number in range(count)))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two classes are called '{twice[0]}'.", "Give each a name of its own.")
    if len(names) < count:
        raise InputError(f"there are labels up to {count - 1} but {len(names)} class names.", "Name every class.")
    raw = RawData(type(train).__name__, names, *sources)
    _refuse_unusable(raw)
    return _described(raw, *sources, skipped=0)


def _own_names(train: Any, val: Any) -> Sequence[str]:
    """What the data sets' ``classes`` say; they must agree."""
    ours, theirs = ([str(name) for name in getattr(part, "classes", None) or ()] for part in (train, val))
    if ours and theirs:
        check_same_classes(ours, theirs, "train", "val")
    return ours or theirs


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/iekd-compress``, or ``~/.cache/iekd-compress``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iekd-compress"


def _described(raw: RawData, train: Source, val: Source, skipped: int) -> ImageData:
    _refuse_empty_classes(train, val, raw)
    size = raw.image_size or _typical_size(train)
    return ImageData(
        name=raw.name,
        classes=raw.classes,
        train=train,
        val=val,
        digest=_digest(raw.classes, train, val),
        skipped=skipped,
        default_size=size,
        augmentation=raw.augmentation or ("crop" if size <= _SMALL else "standard"),
    )


def _split(raw: RawData, val_fraction: float | None, seed: int) -> tuple[Source, Source]:
    if raw.val is not None:
        if val_fraction is not None:
            raise InputError(f"{raw.name} has a validation part of its own.", "Leave out --val-fraction.")
        return raw.train, raw.val
    if val_fraction is None:
        raise InputError(f"{raw.name} has no validation part.", "Add --val-fraction 0.2 to hold out a fifth of it.")
    train, val = stratified_split(raw.train.targets, val_fraction, seed, raw.classes)
    return Subset(raw.train, train), Subset(raw.train, val)


def _limited(source: Source, limit: int | None, seed: int, classes: int, flag: str) -> Source:
    if limit is None or limit >= len(source):
        return source
    if limit < classes:
        raise InputError(f"{flag} {limit} is less than an image for each of {classes} classes.", "Raise it.")
    return Subset(source, balanced_subset(source.targets, limit, seed, classes))


def _readable(source: Source, skip: bool, cache_dir: Path, on_checked: Progress | None) -> tuple[Source, int]:
    """The source without its unreadable images, and their number."""
    bad = unreadable(source, cache_dir, stop_at_first=not skip, on_checked=on_checked)
    if not bad:
        return source, 0
    if not skip:
        raise next(iter(bad.values()))
    return Subset(source, np.setdiff1d(np.arange(len(source)), list(bad))), len(bad)


def _refuse_unusable(raw: RawData) -> None:
    """Refuse data of fewer than two classes, or with images of none of them."""
    if len(raw.classes) < 2:
        raise InputError(f"{raw.name} has one class, {listed(raw.classes)}.", "A classifier needs two or more.")
    for part, source in (("train", raw.train), ("val", raw.val)):
        labels = source.targets if source is not None else np.empty(0)
        outside = labels[(labels < 0) | (labels >= len(raw.classes))]
        if len(outside):
            raise InputError(
                f"{raw.name} has an image of class {outside[0]} in {part}, of classes 0 to {len(raw.classes) - 1}.",
                "Use data of which every image has a class (some publish their test part without).",
            )


def _refuse_empty_classes(train: Source, val: Source, raw: RawData) -> None:
    for part, source in (("train", train), ("val", val)):
        counts = np.bincount(source.targets, minlength=len(raw.classes))
        empty = [raw.classes[number] for number in np.flatnonzero(counts == 0)]
        if empty:
            raise InputError(
                f"{raw.name} has no images of {listed(empty)} in {part}.",
                "Every class needs at least one image in train and one in val.",
            )


def _typical_size(source: Source) -> int:
    """The median short side, to the nearest multiple of 32 within 32..224."""
    sides = [min(source.image(index).size) for index in evenly_spaced(len(source), _SIZE_SAMPLES)]
    return int(np.clip(round(float(np.median(sides)) / 32) * 32, 32, 224))


def _digest(classes: tuple[str, ...], train: Source, val: Source) -> str:
    """Of names, sizes and labels of all images, and of the pixels of a few: cheap, and the same on every machine."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for source in (train, val):
        targets: Labels = source.targets.astype("<i8")
        digest.update(b"\0\0" + targets.tobytes())
        for index in range(len(source)):
            digest.update(source.identity(index).encode() + b"\0")
        for index in evenly_spaced(len(source), _DIGEST_SAMPLES):
            digest.update(source.image(index).tobytes())
    return digest.hexdigest()
