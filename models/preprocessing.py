"""From an image to the tensor that a model takes: one definition for training's validation, export and the device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iekd.errors import InputError


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

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.crop_fraction <= 1 or min(self.std) <= 0:
            raise InputError(f"{self} is no preprocessing.", "size and std must be positive, crop_fraction in (0, 1].")

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The image as float32 (3, size, size), normalised."""
        return self.normalize(np.asarray(self.fit(image)))

    def fit(self, image: Image.Image) -> Image.Image:
        """The image as RGB, resized and cropped to ``size`` x ``size``."""
        image = self.resize(image)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def resize(self, image: Image.Image) -> Image.Image:
        """The image as RGB, its short side ``size / crop_fraction``, whole.  Bilinear, antialiased, by Pillow."""
        image = to_rgb(image)
        short = max(self.size, round(self.size / self.crop_fraction))
        scale = short / min(image.size)
        width, height = (max(short, round(side * scale)) for side in image.size)
        if (width, height) == image.size:
            return image
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (H, W, 3) in 0..255 as normalised float32 (3, H, W)."""
        planes = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        planes[...] = pixels.transpose(2, 0, 1)
        planes /= np.float32(255)
        planes -= _per_channel(self.mean)
        planes /= _per_channel(self.std)
        return planes

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


def _per_channel(values: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None, None]


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as RGB of 8 bits, loaded.

    Transparency is dropped, grey levels of 16 bits are scaled (Pillow alone would clip them), and a rotation noted in
    the file (EXIF) is not applied: pixels are taken as stored.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
