"""Data that timm can only read from its beginning to its end: ``hfids/NAME`` (Hugging Face, streamed), ``tfds/NAME``.

It is read once, and its pixels kept without loss in one file, so that from then on images can be had by number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from iekd.compress.datasets.hugging_face import VAL_SPLITS, find_columns
from iekd.compress.datasets.packages import need
from iekd.compress.datasets.raw import RawData
from iekd.compress.datasets.source import Source, decode
from iekd.errors import IekdError, InputError
from iekd.files import atomic_folder


class SpooledSource(Source):
    """Images kept end to end in one file, as PNG.

    Args:
        folder: as :func:`_spool` left it.
        name: for messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            super().__init__(index["targets"])
            self._ends = index["ends"]
        self._file = folder / "images.bin"
        self._name = name

    def image(self, index: int) -> Image.Image:  # noqa: D102
        start = int(self._ends[index - 1]) if index else 0
        with open(self._file, "rb") as handle:
            handle.seek(start)
            return decode(handle.read(int(self._ends[index]) - start), self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{index} of {self._name}"


def load_stream(spec: str, name: str, root: str, cache_dir: Path) -> RawData:
    """The data set ``name``, read through timm; ``root`` is the folder of its library's own files.

    Raises:
        InputError: it cannot be read.
        EnvironmentMissingError: a package is missing.
    """
    builder = _builder(spec, name, root)
    splits = list(builder.info.splits or ())
    train_name = "train" if "train" in splits or not splits else splits[0]
    val_name = next((split for split in VAL_SPLITS if split in splits and split != train_name), None)
    # What is known before a stream is read may lack the columns; timm's own names for them are then the guess.
    features = builder.info.features
    columns = find_columns(features, spec) if features else ("image", "label")
    version = f"{builder.info.version} {getattr(builder, 'hash', '')}"
    parts = [
        _spooled(spec, name, root, split, columns, version, cache_dir) for split in (train_name, val_name) if split
    ]
    names = getattr(features[columns[1]], "names", None) if features else None
    count = max(int(part.targets.max(initial=0)) for part in parts) + 1
    classes = tuple(names or (str(number) for number in range(count)))
    return RawData(spec, classes, parts[0], parts[1] if val_name else None)


def _builder(spec: str, name: str, root: str) -> Any:
    """The library's description of the data set."""
    if spec.lower().startswith("hfids/"):
        datasets = need("datasets", "datasets", spec)
        with _readable(spec):
            return datasets.load_dataset_builder(name, cache_dir=root or None)
    need("tensorflow", "tensorflow", spec)
    tfds = need("tensorflow-datasets", "tensorflow_datasets", spec)
    with _readable(spec):
        return tfds.builder(name, data_dir=root or None)


def _spooled(
    spec: str, name: str, root: str, split: str, columns: tuple[str, str], version: str, cache_dir: Path
) -> SpooledSource:
    """The split from ``cache_dir``, read into it first where it is not there."""
    identity = "\0".join((spec, split, *columns, version))
    folder = cache_dir / "spooled" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with _readable(spec):
                _spool(_stream(spec, name, root, split, columns), folder)
    return SpooledSource(folder, f"{spec}, {split}")


def _stream(spec: str, name: str, root: str, split: str, columns: tuple[str, str]) -> Any:
    from timm.data.dataset_factory import create_dataset

    stream = create_dataset(
        f"{spec.partition('/')[0]}/{name}",
        root=root or None,
        split=split,
        input_key=columns[0],
        target_key=columns[1],
        num_samples=1 if spec.lower().startswith("hfids/") else None,  # timm asks for it, and uses it in training only
    )
    # Where several processes train together, each reads a share unless told that it is alone.
    stream.reader.dist_rank, stream.reader.dist_num_replicas = 0, 1
    return stream


def _spool(stream: Any, folder: Path) -> None:
    targets, ends = [], []
    with atomic_folder(folder) as temporary:
        with open(temporary / "images.bin", "wb") as handle:
            for image, target in stream:
                image.save(handle, "PNG", compress_level=1)
                targets.append(int(target))
                ends.append(handle.tell())
        np.savez(temporary / "index.npz", targets=np.array(targets, np.int64), ends=np.array(ends, np.int64))


@contextmanager
def _readable(spec: str) -> Iterator[None]:
    """The libraries raise what they like on a name, a file or a network that fails."""
    try:
        yield
    except IekdError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read data '{spec}': {detail}", "Check the name, the path and the network.") from error
