"""Small image data sets, written to disk for tests."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A picture of its own for every number, (width, height) pixels: smooth, so that JPEG keeps most of it."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def write_tree(folder: Path, counts: Mapping[str, int], *, ending: str = "png", first: int = 0) -> Path:
    """``folder``/CLASS/NNN.ending, with so many pictures of each class."""
    number = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            picture(number).save(folder / name / f"{number:03d}.{ending}")
            number += 1
    return folder


def write_split(root: Path, train: int = 6, val: int = 3, *, ending: str = "png", val_name: str = "val") -> Path:
    """``root`` with train/ and val/, of the classes ant, bee and cat."""
    names = ("ant", "bee", "cat")
    write_tree(root / "train", dict.fromkeys(names, train), ending=ending)
    write_tree(root / val_name, dict.fromkeys(names, val), ending=ending, first=500)
    return root


def encoded(number: int, kind: str = "JPEG") -> bytes:
    """:func:`picture` as the bytes of a file."""
    stream = io.BytesIO()
    picture(number).save(stream, kind)
    return stream.getvalue()


def decoded(data: bytes) -> bytes:
    """The RGB pixels in the bytes of a file."""
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()
