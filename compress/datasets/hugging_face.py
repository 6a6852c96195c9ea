"""Hugging Face data sets: ``hfds/NAME``, ``hfds/PATH`` for files on disk, ``:ROOT`` for the folder of the downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iekd.compress.datasets.packages import need
from iekd.compress.datasets.raw import RawData, listed
from iekd.compress.datasets.source import Labels, Source, UnreadableImageError, check_decodes, decode
from iekd.errors import InputError

VAL_SPLITS = ("validation", "val", "valid", "dev", "test")
_LABEL_NAMES = ("label", "labels", "fine_label")


class HuggingFaceSource(Source):
    """A split, its images left encoded until they are asked for.

    Args:
        split: ``datasets.Dataset`` whose column ``column`` was cast to undecoded images.
        column: of the images.
        targets: class indices (N,).
        name: for messages.
    """

    def __init__(self, split: Any, column: str, targets: Sequence[int] | Labels, name: str) -> None:
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
        stored = self._split[index][self._column] or {}
        if stored.get("bytes"):
            return bytes(stored["bytes"])
        try:
            return Path(stored.get("path") or "").read_bytes()
        except OSError as error:
            raise UnreadableImageError(self.label(index), str(error.strerror)) from error


def load_hugging_face(spec: str, name: str, root: str, _cache_dir: Path) -> RawData:
    """The data set ``name`` of the hub, or in the local folder ``name``.

    Raises:
        InputError: it cannot be had, or has no column of images or of classes.
        EnvironmentMissingError: the package ``datasets`` is missing.
    """
    datasets = need("datasets", "datasets", spec)
    try:
        splits = datasets.load_dataset(str(Path(name).expanduser()), cache_dir=root or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot load data '{spec}': {' '.join(str(error).split())}",
            "Check the name, and the network; files on disk are hfds/PATH.",
        ) from error
    train_name = "train" if "train" in splits else next(iter(splits))
    val_name = next((split for split in VAL_SPLITS if split in splits and split != train_name), None)
    image_column, label_column = find_columns(splits[train_name].features, spec)
    names = [split for split in (train_name, val_name) if split]
    values = [list(splits[split].select_columns([label_column])[label_column][:]) for split in names]
    classes = _class_names(splits[train_name].features[label_column], values)
    sources = [
        HuggingFaceSource(
            splits[split].cast_column(image_column, datasets.Image(decode=False)),
            image_column,
            _indices(labels, classes, splits[split].features[label_column]),
            f"{spec}, {split}",
        )
        for split, labels in zip(names, values, strict=True)
    ]
    return RawData(spec, classes, sources[0], sources[1] if val_name else None)


def find_columns(features: Any, spec: str) -> tuple[str, str]:
    """Names of the columns that hold the image and its class.

    Raises:
        InputError: none, or several and no telling which.
    """
    kinds = {name: type(feature).__name__ for name, feature in (features or {}).items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    preferred = [name for name in _LABEL_NAMES if name in labels] or [name for name in _LABEL_NAMES if name in kinds]
    labels = preferred[:1] or labels
    if "image" in images:
        images = ["image"]
    for what, found in (("images", images), ("classes", labels)):
        if len(found) != 1:
            raise InputError(
                f"data '{spec}' has {len(found) or 'no'} columns of {what}; its columns are {listed(list(kinds))}.",
                "It needs one column of images, and one of classes called 'label'.",
            )
    return images[0], labels[0]


def _class_names(feature: Any, values: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    """Those that the column declares; else its distinct values, sorted."""
    names = getattr(feature, "names", None)
    return tuple(names) if names else tuple(str(value) for value in sorted({v for part in values for v in part}))


def _indices(values: Sequence[Any], classes: tuple[str, ...], feature: Any) -> Labels:
    if getattr(feature, "names", None):
        return np.asarray(values, dtype=np.int64)
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[str(value)] for value in values], dtype=np.int64)
