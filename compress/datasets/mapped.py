"""Map-style data sets that are Python objects: the user's own, and torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iekd.compress.datasets.source import Labels, Source, decoding, evenly_spaced
from iekd.errors import InputError
from iekd.models.preprocessing import to_rgb

_KINDS = "Give a PIL image, a uint8 array (H, W, 3), or a tensor (3, H, W) that is uint8 or within 0..1."
_LABEL_SAMPLES = 8
_RANDOM_SAMPLES = 16


class MappedSource(Source):
    """A data set whose items are (image, class index).

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        name: for messages.

    Raises:
        InputError: not map-style, or its items are not usable or differ from one reading to the next.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
            raise InputError(
                f"data set {name} ({type(dataset).__name__}) is empty or cannot be indexed.",
                "It needs __len__ and __getitem__.",
            )
        self._dataset = dataset
        self._name = name
        self.in_memory = isinstance(getattr(dataset, "data", None), (np.ndarray, Tensor)) or hasattr(dataset, "tensors")
        self._refuse_random()
        super().__init__(self._labels())

    def image(self, index: int) -> Image.Image:  # noqa: D102
        with decoding(self.label(index)):
            return as_image(self._item(index)[0], self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{index} of {self._name}"

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self._dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise InputError(f"item {self.label(index)} is no pair (image, class index).", _KINDS)
        return item[0], item[1]

    def _refuse_random(self) -> None:
        """Views are numbered so that the teacher's answers can be kept; images that change would make them wrong."""
        for index in evenly_spaced(len(self._dataset), _RANDOM_SAMPLES):  # a flip is the same twice half of the time
            first, again = (self.image(index) for _ in range(2))
            if first.size != again.size or first.tobytes() != again.tobytes():
                raise InputError(
                    f"image {self.label(index)} differs from one reading to the next.",
                    "Give the data set without random transforms: augmentation is applied here, by name.",
                )

    def _labels(self) -> Labels:
        """The ``targets`` attribute where there is one and it agrees with the items; else every item is asked."""
        length = len(self._dataset)
        some = evenly_spaced(length, _LABEL_SAMPLES)
        given = _integers(getattr(self._dataset, "targets", None))
        if given is not None and len(given) == length and all(given[at] == self._class_index(at) for at in some):
            return given
        return np.array([self._class_index(index) for index in range(length)], dtype=np.int64)

    def _class_index(self, index: int) -> int:
        value = self._item(index)[1]
        try:
            number = int(value)
            if number == value and number >= 0:
                return number
        except (TypeError, ValueError):
            pass
        raise InputError(
            f"the class of item {self.label(index)} is {value!r}.", "Give a class index, counted from 0."
        ) from None


def _integers(values: Any) -> Labels | None:
    """``values`` if they are a row of integers."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of differing lengths
        return None
    return array.astype(np.int64) if array.ndim == 1 and np.issubdtype(array.dtype, np.integer) else None


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
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"image {label} is of the type {kind}.", _KINDS)
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    if value.ndim != 2 and (value.ndim != 3 or value.shape[2] != 3):
        raise InputError(f"image {label} is an array of the shape {value.shape}.", _KINDS)
    return Image.fromarray(np.ascontiguousarray(value)).convert("RGB")


def _tensor_pixels(tensor: Tensor, label: str) -> Any:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(f"image {label} is a tensor of the shape {tuple(tensor.shape)}.", _KINDS)
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 1):  # false for NaN
            raise InputError(
                f"image {label} has values from {low:.3g} to {high:.3g}.",
                "Give values within 0..1, not normalised: normalisation is applied here.",
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    return tensor.permute(1, 2, 0).numpy()
