"""Images as files, a folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from iekd.compress.datasets.raw import RawData, check_same_classes
from iekd.compress.datasets.source import Labels, Source, check_decodes, decode, unreadable_image
from iekd.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
VAL_FOLDERS = ("val", "valid", "validation", "test")
_LAYOUT = "Give each class a folder: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg."


class ImageFile(NamedTuple):
    """A file as the folder listing shows it."""

    name: str
    """Path below the data set's root."""
    size: int
    changed_ns: int


class FileSource(Source):
    """Image files.

    Args:
        root: of the data set.
        files: below ``root``.
        targets: class indices (N,).
    """

    def __init__(self, root: Path, files: Sequence[ImageFile], targets: Sequence[int] | Labels) -> None:
        super().__init__(targets)
        self._root = str(root)
        # Arrays: a million Python objects would be large, and copied to every worker process as soon as it counts
        # references to them.
        self._names = np.array([os.fsencode(file.name) for file in files], dtype=np.bytes_)
        self._sizes = np.array([file.size for file in files], dtype=np.int64)
        self._changed_ns = np.array([file.changed_ns for file in files], dtype=np.int64)

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return decode(self._contents(index), self.label(index))

    def check(self, index: int) -> None:  # noqa: D102
        check_decodes(self._contents(index), self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{self._root}/{os.fsdecode(self._names[index])}"

    def identity(self, index: int) -> str:  # noqa: D102
        return f"{os.fsdecode(self._names[index])}:{self._sizes[index]}"

    def stamp(self, index: int) -> str:  # noqa: D102
        return f"{self.label(index)}:{self._sizes[index]}:{self._changed_ns[index]}"

    def _contents(self, index: int) -> bytes:
        try:
            with open(self.label(index), "rb") as handle:
                return handle.read()
        except OSError as error:
            raise unreadable_image(self.label(index), str(error.strerror)) from error


def load_folder(path: str) -> RawData:
    """The images under ``path``: train/ beside val/, valid/, validation/ or test/, or one tree of class folders.

    The classes are the class folders in the order of ``sorted``, as torchvision's ImageFolder has them.

    Raises:
        InputError: no such folder, no images, or classes that differ between the parts.
    """
    root = Path(path).expanduser().absolute()
    if not path or not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise InputError(f"data folder '{path}' {what}.", _LAYOUT)
    name = f"folder:{path}"
    if not (root / "train").is_dir():
        classes, whole = _scan(root, root)
        return RawData(name, classes, whole, None)
    classes, train = _scan(root / "train", root)
    val_root = next((root / folder for folder in VAL_FOLDERS if (root / folder).is_dir()), None)
    if val_root is None:
        return RawData(name, classes, train, None)
    val_classes, val = _scan(val_root, root)
    check_same_classes(classes, val_classes, "train/", f"{val_root.name}/")
    return RawData(name, classes, train, val)


def _scan(tree: Path, root: Path) -> tuple[tuple[str, ...], FileSource]:
    classes = tuple(sorted(entry.name for entry in tree.iterdir() if entry.is_dir() and entry.name[0] != "."))
    found = [sorted(_images(tree / name, root)) for name in classes]
    if not any(found):
        loose = any(entry.suffix.lower() in EXTENSIONS for entry in tree.iterdir())
        what = "images, but none in a class folder" if loose else "no images"
        raise InputError(f"{tree} has {what}.", f"{_LAYOUT}  Known endings: {' '.join(EXTENSIONS)}.")
    for name, files in zip(classes, found, strict=True):
        if not files:
            raise InputError(f"class folder {tree / name} has no images.", "Add images to it, or remove the folder.")
    targets = np.repeat(np.arange(len(classes)), [len(files) for files in found])
    return classes, FileSource(root, [file for files in found for file in files], targets)


def _images(folder: Path, root: Path) -> list[ImageFile]:
    """All image files below ``folder``; hidden ones are not looked at."""
    prefix = f"{os.path.relpath(folder, root)}/"
    found: list[ImageFile] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _images(Path(entry.path), root)
            elif entry.name.lower().endswith(EXTENSIONS):
                found.append(image_file(entry, prefix + entry.name))
    return found


def image_file(path: Path | os.DirEntry[str], name: str) -> ImageFile:
    """The file at ``path``, which the data set calls ``name``."""
    try:
        status = path.stat()
    except OSError:  # such as a link to nowhere: listed all the same, for reading it will say what is wrong
        return ImageFile(name, 0, 0)
    return ImageFile(name, status.st_size, status.st_mtime_ns)
