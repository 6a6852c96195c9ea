"""From an image file to the tensor that a model takes: one definition for training's validation, export and the device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize the short side to ``size / crop_fraction``, crop the centre to ``size`` x ``size``, scale, normalise.

    Args:
        size: height and width of the model's input, pixels.
        crop_fraction: share of the resized image that the crop keeps, (0, 1].
        mean: per channel, for pixels scaled to 0..1.
        std: per channel, likewise.
    """

    size: int
    crop_fraction: float = 1.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The image as float32 (3, size, size), normalised.  Bilinear, antialiased, by Pillow."""
        image = image.convert("RGB")
        short = max(self.size, round(self.size / self.crop_fraction))
        scale = short / min(image.size)
        width, height = (max(short, round(side * scale)) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return self.normalize(np.asarray(image, dtype=np.uint8))

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (size, size, 3) in 0..255 as normalised float32 (3, size, size)."""
        scaled = pixels.astype(np.float32) / 255.0
        normal = (scaled - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)

    def to_json(self) -> str:
        """The form that travels in an exported file's metadata."""
        return json.dumps({**asdict(self), "layout": "NCHW", "interpolation": "bilinear", "channels": "RGB"})

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """The inverse of :meth:`to_json`."""
        value: dict[str, Any] = json.loads(text)
        return cls(
            size=int(value["size"]),
            crop_fraction=float(value["crop_fraction"]),
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
        )
