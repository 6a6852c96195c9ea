"""Data sets of the user's own, given as Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iekd.compress.datasets.raw import check_same_classes
from iekd.compress.datasets.source import Source, evenly_spaced
from iekd.errors import InputError
from iekd.models.preprocessing import to_rgb

_KINDS = "Give a PIL image, a uint8 array (H, W, 3), or a tensor (3, H, W) that is uint8 or within 0..1."
_LABEL_SAMPLES = 8


class UserSource(Source):
    """A map-style data set of (image, class index).

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        part: ``train`` or ``val``, for messages.

    Raises:
        InputError: not map-style, or its items are not usable or differ from one reading to the next.
    """

    def __init__(self, dataset: Any, part: str) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
            raise InputError(
                f"the {part} data set ({type(dataset).__name__}) is empty or cannot be indexed.",
                "It needs __len__ and __getitem__.",
            )
        self._dataset = dataset
        self._part = part
        self._refuse_random()
        super().__init__(self._labels())

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return as_image(self._item(index)[0], self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{index} of the {self._part} data set"

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self._dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise InputError(f"item {self.label(index)} is no pair (image, class index).", _KINDS)
        return item[0], item[1]

    def _refuse_random(self) -> None:
        """Augmented images would hide which view they are, so that no answer of the teacher could be kept."""
        first, again = (self.image(0).tobytes() for _ in range(2))
        if first != again:
            raise InputError(
                f"image {self.label(0)} differs from one reading to the next.",
                "Give the data set without random transforms: augmentation is applied here, by name.",
            )

    def _labels(self) -> list[int]:
        """The ``targets`` attribute where there is one and it agrees with the items; else every item is asked."""
        length = len(self._dataset)
        given = getattr(self._dataset, "targets", None)
        if given is not None and len(given) == length:
            labels = [_class_index(value, self.label(0)) for value in given]
            some = evenly_spaced(length, _LABEL_SAMPLES)
            if all(labels[index] == _class_index(self._item(index)[1], self.label(index)) for index in some):
                return labels
        return [_class_index(self._item(index)[1], self.label(index)) for index in range(length)]


def as_image(value: Any, label: str) -> Image.Image:
    """An image as RGB.

    Args:
        value: PIL image, uint8 array (H, W), (H, W, 1) or (H, W, 3), or tensor (1 or 3, H, W), uint8 or in 0..1.
        label: for messages.

    Raises:
        InputError: anything else.
    """
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, Tensor):
        value = _tensor_pixels(value.detach().cpu(), label)
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or not 2 <= value.ndim <= 3:
        kind = f"{value.dtype} array {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"image {label} is a {kind}.", _KINDS)
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    if value.ndim == 3 and value.shape[2] != 3:
        raise InputError(f"image {label} has the shape {value.shape}.", _KINDS)
    return Image.fromarray(np.ascontiguousarray(value)).convert("RGB")


def _tensor_pixels(tensor: Tensor, label: str) -> Any:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(f"image {label} is a tensor of shape {tuple(tensor.shape)}.", _KINDS)
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"image {label} has values from {low:.3g} to {high:.3g}.",
                "Give values within 0..1, not normalised: normalisation is applied here.",
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    return tensor.permute(1, 2, 0).numpy()


def _class_index(value: Any, label: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"the class of item {label} is {value!r}.", "Give a class index, counted from 0.") from error
    if number != value or number < 0:
        raise InputError(f"the class of item {label} is {value!r}.", "Give a class index, counted from 0.")
    return number


def class_names(train: Any, val: Any, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names given, or those that the data sets agree on; None where nobody names any.

    Raises:
        InputError: the two data sets name different classes.
    """
    if given is not None:
        return tuple(given)
    ours, theirs = (
        tuple(str(name) for name in names) if (names := getattr(part, "classes", None)) else None
        for part in (train, val)
    )
    if ours and theirs:
        check_same_classes(ours, theirs, "train", "val")
    return ours or theirs
