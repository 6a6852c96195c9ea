"""torchvision's data sets, by the names that timm gives them: ``torch/cifar10:ROOT``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iekd.compress.datasets.folders import FileSource, image_file, load_folder
from iekd.compress.datasets.mapped import MappedSource
from iekd.compress.datasets.raw import RawData, check_same_classes
from iekd.compress.datasets.source import Source
from iekd.errors import InputError, unknown_name

_SOME_NAMES = (
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "imagenet",
    "inaturalist",
    "kmnist",
    "mnist",
    "places365",
    "qmnist",
)
_WRITTEN = {"kmnist", "mnist", "qmnist"}
"""Of handwriting: mirrored, a character is another one or none."""


def load_torchvision(spec: str, name: str, root: str, _cache_dir: Path) -> RawData:
    """torchvision's data set ``name`` in the folder ``root``, where it must lie already.

    Raises:
        InputError: an unknown name, or ``root`` does not hold the data.
    """
    if name.lower() in ("folder", "image_folder"):
        return load_folder(root)
    if not root:
        raise InputError(f"data '{spec}' does not say where the data lies.", f"Write torch/{name}:ROOT.")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise InputError(f"data folder '{root}' does not exist.", f"Check what follows the colon in '{spec}'.")
    train, val = (_open(name, path, split) for split in ("train", "validation"))
    classes = _class_names(train)
    check_same_classes(classes, _class_names(val), "train", "val")
    return RawData(
        spec,
        classes,
        _source(train, path, f"{spec}, train"),
        _source(val, path, f"{spec}, val"),
        augmentation="digits" if name.lower() in _WRITTEN else None,
    )


def _open(name: str, root: Path, split: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    try:
        return create_dataset(f"torch/{name}", root=str(root), split=split)
    except AssertionError as error:
        raise unknown_name("torchvision data set", name, _SOME_NAMES) from error
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"cannot open torchvision's {name} ({split}) in {root}: {' '.join(str(error).split())}",
            f"Put the files there as torchvision has them: most of its classes do with root='{root}', download=True.",
        ) from error


def _source(dataset: Any, root: Path, name: str) -> Source:
    files = _files(dataset)
    if files is None:
        return MappedSource(dataset, name)
    named = [image_file(Path(path), os.path.relpath(path, root)) for path, _ in files]
    return FileSource(root, named, [target for _, target in files])


def _files(dataset: Any) -> list[tuple[str, int]] | None:
    """(path, class index) of every image, of data sets that lie as image files; None of others."""
    for attribute in ("samples", "imgs"):
        if hasattr(dataset, attribute):
            return list(getattr(dataset, attribute))
    folders = getattr(dataset, "all_categories", None)
    if folders is None:
        return None
    return [(str(Path(dataset.root) / folders[number] / file), number) for number, file in dataset.index]  # iNaturalist


def _class_names(dataset: Any) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or dataset.all_categories
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)
