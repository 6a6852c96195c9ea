"""Hugging Face data sets: ``hfds/NAME``, or as a stream ``hfids/NAME``; ``NAME`` may be a folder on disk.

What follows a colon is the folder for downloads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iekd.compress.datasets.packages import need
from iekd.compress.datasets.raw import RawData, listed
from iekd.compress.datasets.source import Labels, Source, check_decodes, decode, unreadable_image
from iekd.compress.datasets.streams import SpooledSource, spooled, spooled_labels
from iekd.errors import IekdError, InputError

_VAL_SPLITS = ("validation", "val", "valid", "dev", "test")
_LABEL_NAMES = ("label", "labels", "fine_label")


class HuggingFaceSource(Source):
    """A split, its images left encoded until they are asked for.

    Args:
        split: ``datasets.Dataset`` whose column ``column`` was cast to undecoded images.
        column: of the images.
        targets: class indices (N,).
        name: for messages.
    """

    def __init__(self, split: Any, column: str, targets: Labels, name: str) -> None:
        super().__init__(targets)
        self._split = split
        self._column = column
        self._name = name

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return decode(self._contents(index), self.label(index))

    def check(self, index: int) -> None:  # noqa: D102
        check_decodes(self._contents(index), self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{index} of {self._name}"

    def stamp(self, index: int) -> str:  # noqa: D102
        return f"{self._split._fingerprint}:{index}"

    def _contents(self, index: int) -> bytes:
        return _encoded(self._split[index][self._column], self.label(index))


def load_hugging_face(spec: str, name: str, root: str, _cache_dir: Path) -> RawData:
    """The data set ``name``, downloaded where it is not on this machine.

    Raises:
        InputError: it cannot be had, or has no column of images or of classes.
        EnvironmentMissingError: the package ``datasets`` is missing.
    """
    datasets = need("datasets", "datasets", spec)
    with _loading(spec):
        splits = datasets.load_dataset(str(Path(name).expanduser()), cache_dir=root or None)
    names = _split_names(splits)
    features = splits[names[0]].features
    image, label = find_columns(features, spec)
    labels = [list(splits[split].select_columns([label])[label][:]) for split in names]
    classes, targets = _numbered(features[label], labels)
    parts = [
        HuggingFaceSource(
            splits[split].cast_column(image, datasets.Image(decode=False)), image, target, f"{spec}, {split}"
        )
        for split, target in zip(names, targets, strict=True)
    ]
    return RawData(spec, classes, parts[0], parts[1] if len(parts) > 1 else None)


def load_hugging_face_stream(spec: str, name: str, root: str, cache_dir: Path) -> RawData:
    """The data set ``name``, of which only the images themselves come to this machine, into ``cache_dir``.

    Raises:
        InputError: it cannot be had, or has no column of images or of classes.
        EnvironmentMissingError: the package ``datasets`` is missing.
    """
    datasets = need("datasets", "datasets", spec)
    with _loading(spec):
        builder = datasets.load_dataset_builder(str(Path(name).expanduser()), cache_dir=root or None)
        splits = builder.as_streaming_dataset()
        names = _split_names(splits)
        features = splits[names[0]].features or splits[names[0]]._resolve_features().features
    image, label = find_columns(features, spec)

    def rows(split: str) -> Iterator[tuple[bytes, Any]]:
        undecoded = splits[split].cast_column(image, datasets.Image(decode=False))
        for number, row in enumerate(undecoded.select_columns([image, label])):
            yield _encoded(row[image], f"{number} of {spec}, {split}"), row[label]

    with _loading(spec):
        folders = [spooled(partial(rows, split), (spec, split, builder.hash), cache_dir) for split in names]
    classes, targets = _numbered(features[label], [spooled_labels(folder) for folder in folders])
    parts = [SpooledSource(folders[i], targets[i], f"{spec}, {split}") for i, split in enumerate(names)]
    return RawData(spec, classes, parts[0], parts[1] if len(parts) > 1 else None)


def find_columns(features: Any, spec: str) -> tuple[str, str]:
    """Names of the columns that hold the image and its class.

    Raises:
        InputError: none, or several and no telling which.
    """
    kinds = {name: type(feature).__name__ for name, feature in (features or {}).items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if "image" in images:
        images = ["image"]
    labels = [name for name in _LABEL_NAMES if name in kinds][:1]
    labels = labels or [name for name, kind in kinds.items() if kind == "ClassLabel"]
    for what, found in (("images", images), ("classes", labels)):
        if len(found) != 1:
            raise InputError(
                f"data '{spec}' has {len(found) or 'no'} columns of {what}; its columns are {listed(list(kinds))}.",
                "It needs one column of images, and one of classes called 'label'.",
            )
    return images[0], labels[0]


def val_split(names: Sequence[str], train: str) -> str | None:
    """The split to measure on, of those that there are."""
    return next((split for split in _VAL_SPLITS if split in names and split != train), None)


def _split_names(splits: Any) -> list[str]:
    """Of the training part and, where there is one, of the validation part."""
    train = "train" if "train" in splits else next(iter(splits))
    val = val_split(list(splits), train)
    return [train, val] if val else [train]


def _numbered(feature: Any, parts: Sequence[Sequence[Any]]) -> tuple[tuple[str, ...], list[Labels]]:
    """Class names and, for each part, class indices; a column that declares no names has its values, sorted."""
    names = getattr(feature, "names", None)
    if names:
        return tuple(names), [np.asarray(labels, dtype=np.int64) for labels in parts]
    values = sorted({label for labels in parts for label in labels})
    numbers = {value: number for number, value in enumerate(values)}
    targets = [np.array([numbers[label] for label in labels], dtype=np.int64) for labels in parts]
    return tuple(str(value) for value in values), targets


def _encoded(stored: Any, name: str) -> bytes:
    """The bytes of an undecoded image, which carries them or a path."""
    stored = stored or {}
    if stored.get("bytes"):
        return bytes(stored["bytes"])
    try:
        return Path(stored.get("path") or "").read_bytes()
    except OSError as error:
        raise unreadable_image(name, str(error.strerror)) from error


@contextmanager
def _loading(spec: str) -> Iterator[None]:
    """The library raises what it likes on a name, a file or a network that fails."""
    try:
        yield
    except IekdError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read data '{spec}': {reason}", "Check the name, and the network; files on disk are hfds/PATH."
        ) from error
