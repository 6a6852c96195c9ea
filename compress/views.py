"""Numbered augmented views of images, and the loaders that go through them.

View v of image i is a pure function of (seed, i, v): of no global random state, no order and no number of workers.  So
a resumed run sees bit for bit what an undisturbed one saw, and what a frozen teacher says of a view can be kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from iekd.compress.augment import preset
from iekd.compress.data import ImageData
from iekd.compress.datasets.source import ImageSource
from iekd.deploy.backends import Array
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing

PLAIN = -1
"""The view without augmentation."""

_MAX_AUTO_WORKERS = 4
_START = "fork"
"""How workers start.  What Python 3.14 prefers would import torch anew in each, several seconds, at every epoch."""
_PLAIN_BATCH = 64
_EPOCH_STREAM, _VIEW_STREAM = 0, 1


class Sample(NamedTuple):
    """One view of an image."""

    image: Tensor
    """float32 (3, size, size), normalised."""
    target: int
    """Class index."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    """Number of the image in its data set."""
    view: int
    """Number of the view; -1: not augmented."""


class Batch(NamedTuple):
    """Views of several images."""

    image: Tensor
    """float32 (B, 3, size, size), normalised."""
    target: Tensor
    """Class indices, int64 (B,)."""
    index: Tensor  # type: ignore[assignment]
    """Numbers of the images in their data set, int64 (B,)."""
    view: Tensor
    """Numbers of the views, int64 (B,)."""


class ViewDataset(Dataset[Sample]):
    """Views of a source's images, asked for as ``dataset[index, view]``; a view below 0 is not augmented.

    Args:
        source: the images.
        preprocessing: size and normalisation; what view -1 is.
        augmentation: name of a preset.
        seed: of all views.
    """

    def __init__(self, source: ImageSource, preprocessing: Preprocessing, augmentation: str, seed: int) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.seed = seed
        self._augment = preset(augmentation)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, view = key
        image, target = self.source[index]
        if view < 0:
            image = self.preprocessing.fit(image)
        else:
            generator = np.random.default_rng((_VIEW_STREAM, self.seed, index, view))
            image = self._augment(image, self.preprocessing, generator)
        pixels = self.preprocessing.normalize(np.asarray(image))
        return Sample(torch.from_numpy(pixels), target, index, view)


def train_loader(
    dataset: ViewDataset,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    views: int | None,
    workers: int,
    drop_last: bool = True,
) -> DataLoader[Sample]:
    """Every image once, in an order that follows from (seed, epoch); batches are :class:`Batch`.

    Args:
        dataset: the images.
        batch_size: images in a batch.
        epoch: counted from 0.
        seed: of the order.
        views: all images are shown as view ``epoch % views``; None: as view ``epoch``.
        workers: processes that load images.
        drop_last: leave a last, smaller batch out.

    Raises:
        InputError: a batch larger than the data.
    """
    if batch_size > len(dataset):
        raise InputError(
            f"a batch of {batch_size} is larger than the training set of {len(dataset)} images.",
            f"Use --batch-size {len(dataset)} or less.",
        )
    order = np.random.default_rng((_EPOCH_STREAM, seed, epoch)).permutation(len(dataset))
    view = epoch if views is None else epoch % views
    return _loader(dataset, _Views(order, view), batch_size, workers, drop_last)


def plain_loader(dataset: ViewDataset, *, batch_size: int, workers: int, view: int = PLAIN) -> DataLoader[Sample]:
    """Every image once, in order, as one view; not augmented where none is named."""
    return _loader(dataset, _Views(np.arange(len(dataset)), view), batch_size, workers, drop_last=False)


def plain_arrays(data: ImageData, preprocessing: Preprocessing) -> Iterator[tuple[Array, NDArray[np.int64]]]:
    """The validation images in order and batches, decoded as they are asked for: all of them may not fit into memory.

    Args:
        data: the images.
        preprocessing: of the model.

    Yields:
        Float32 images (B, 3, size, size) and class indices (B,).
    """
    dataset = ViewDataset(data.val, preprocessing, "none", seed=0)
    for batch in plain_loader(dataset, batch_size=_PLAIN_BATCH, workers=auto_workers(data)):
        yield np.asarray(batch.image), np.asarray(batch.target)


def chosen_arrays(
    source: ImageSource, preprocessing: Preprocessing, numbers: Iterable[int]
) -> tuple[Array, NDArray[np.int64]]:
    """The images of these numbers, not augmented: float32 (N, 3, size, size), and their class indices (N,)."""
    pairs = [source[int(number)] for number in numbers]
    return np.stack([preprocessing(image) for image, _ in pairs]), np.array([label for _, label in pairs], np.int64)


def auto_workers(data: ImageData) -> int:
    """Worker processes that pay for this data: none where images need no decoding, else one per core, at most 4."""
    if data.in_memory:
        return 0
    return min(len(os.sched_getaffinity(0)), _MAX_AUTO_WORKERS)


class _Views(Sampler[tuple[int, int]]):
    """(index, view) pairs: ``indices`` in their order, all with the same view."""

    def __init__(self, indices: np.ndarray[tuple[int], np.dtype[np.int64]], view: int) -> None:
        self._indices = indices
        self._view = view

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((int(index), self._view) for index in self._indices)


def _collate(samples: list[Sample]) -> Batch:
    images, targets, indices, views = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(targets), torch.tensor(indices), torch.tensor(views))


def _loader(
    dataset: ViewDataset, sampler: _Views, batch_size: int, workers: int, drop_last: bool
) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=_collate,
        num_workers=workers,
        multiprocessing_context=_START if workers else None,
        pin_memory=torch.cuda.is_available(),
        # A loader without a generator of its own draws the workers' seeds from the global one, and so moves it.
        generator=torch.Generator().manual_seed(0),
    )
