"""Data that can only be read from its beginning to its end: read once, and kept in one file, to be had by number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from iekd.compress.datasets.source import Labels, Source, check_decodes, decode
from iekd.files import atomic_folder

Stream = Callable[[], Iterable[tuple[bytes, Any]]]
"""Starts reading; gives (encoded image, label), the label a number or a name."""


class SpooledSource(Source):
    """Encoded images end to end in one file.

    Args:
        folder: as :func:`spooled` has it.
        targets: class indices (N,).
        name: for messages.
    """

    def __init__(self, folder: Path, targets: Labels, name: str) -> None:
        super().__init__(targets)
        self._ends = _index(folder)["ends"]
        self._folder = folder
        self._name = name

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return decode(self._contents(index), self.label(index))

    def check(self, index: int) -> None:  # noqa: D102
        check_decodes(self._contents(index), self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{index} of {self._name}"

    def stamp(self, index: int) -> str:  # noqa: D102
        return f"{self._folder}:{index}:{self._ends[index]}"  # a folder's name stands for what was read into it

    def _contents(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        with open(self._folder / "images.bin", "rb") as handle:
            handle.seek(start)
            return handle.read(int(self._ends[index]) - start)


def spooled(stream: Stream, identity: Iterable[str], cache_dir: Path) -> Path:
    """The folder below ``cache_dir`` that holds what ``stream`` gives; it is started only if that was not read before.

    Args:
        stream: of images and labels.
        identity: tells this stream, and this version of it, from others.
        cache_dir: where it is kept.
    """
    key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    folder = cache_dir / "streams" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            labels, ends = [], [0]
            with atomic_folder(folder) as temporary:
                with open(temporary / "images.bin", "wb") as handle:
                    for encoded, label in stream():
                        ends.append(ends[-1] + handle.write(encoded))
                        labels.append(label)
                np.savez(temporary / "index.npz", labels=np.array(labels), ends=np.array(ends[1:], np.int64))
    return folder


def spooled_labels(folder: Path) -> list[Any]:
    """The labels, as the stream gave them."""
    labels: list[Any] = _index(folder)["labels"].tolist()
    return labels


def _index(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        return dict(index)
