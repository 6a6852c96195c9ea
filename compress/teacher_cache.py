"""What the frozen teacher says is a data set: computed once for an image and an augmented view of it, then read back.

The answers lie in memory-mapped files, half precision, one row an (image, view).  They are filled as training asks for
them; the first time, too, training sees the rounded answer, so a resumed run sees what an undisturbed one saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iekd.files import disk_errors, write_json

Answers = tuple[Tensor, ...]


def bytes_needed(shapes: tuple[tuple[int, ...], ...], images: int, views: int) -> int:
    """Disk that the answers take: ``shapes`` are those of one image's answers."""
    return 2 * images * views * sum(int(np.prod(shape)) for shape in shapes)


class AnswerCache:
    """Answers of a frozen network to ``images`` x ``views`` inputs.

    Args:
        folder: where the files lie; an existing folder must be of the same shapes, or it is emptied.
        shapes: shape of each answer for one image.
        images: number of images.
        views: number of views of each.
    """

    def __init__(self, folder: Path, shapes: tuple[tuple[int, ...], ...], images: int, views: int) -> None:
        layout = {"shapes": [list(shape) for shape in shapes], "images": images, "views": views}
        description = folder / "layout.json"
        files = ["filled.npy", *(f"answer{number}.npy" for number in range(len(shapes)))]
        kept = all((folder / name).exists() for name in (description.name, *files))  # each alone would lie
        fresh = not kept or json.loads(description.read_text()) != layout
        folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder):
            self._filled = _mapped(folder / "filled.npy", (images, views), np.uint8, fresh)
            self._answers = [
                _mapped(folder / f"answer{number}.npy", (images, views, *shape), np.float16, fresh)
                for number, shape in enumerate(shapes)
            ]
        if fresh:
            write_json(description, layout)

    def __call__(self, indices: Tensor, views: Tensor, compute: Callable[[], Answers]) -> Answers:
        """The answers for a batch, float32, on the device of ``indices``.

        Args:
            indices: image numbers (B,).
            views: view numbers (B,).
            compute: asks the network; called for the whole batch when any of it is missing, so that what is stored
                never depends on how much of a batch an interrupted run had stored before.
        """
        rows = (indices.cpu().numpy(), views.cpu().numpy())
        if not self._filled[rows].all():
            for stored, answer in zip(self._answers, compute(), strict=True):
                stored[rows] = answer.detach().float().cpu().numpy().astype(np.float16)
            self._filled[rows] = 1  # after the answers: a killed process leaves no row that claims to be filled
        return tuple(torch.from_numpy(stored[rows].astype(np.float32)).to(indices.device) for stored in self._answers)


def _mapped(path: Path, shape: tuple[int, ...], dtype: type, fresh: bool) -> NDArray[np.generic]:
    if fresh or not path.exists():
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        _reserve(path)
        return array
    return np.lib.format.open_memmap(path, mode="r+")


def _reserve(path: Path) -> None:
    """Take the disk now: writing to a mapped page that the disk has no room for would kill the process."""
    import os

    with open(path, "r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
