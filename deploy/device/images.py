"""From pixels to what the model takes: the same arithmetic as on the host, in numpy; Pillow only where an image file
or a resize asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, DeviceMissingError
from .files import read_json


@dataclass(frozen=True)
class Preprocessing:
    """The bundle's ``preprocessing.json``: how an image becomes the model's input.

    Args:
        size: height and width of the input, pixels.
        crop_fraction: share of the resized image that the centre crop keeps, (0, 1].
        mean: per channel (RGB), for pixels scaled to 0..1.
        std: per channel, likewise.
    """

    size: int
    crop_fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (N, H, W, 3) in 0..255 as normalised float32 (N, 3, H, W)."""
        planes = np.empty((len(pixels), 3, *pixels.shape[1:3]), dtype=np.float32)
        planes[...] = pixels.transpose(0, 3, 1, 2)
        planes /= np.float32(255)
        planes -= np.array(self.mean, dtype=np.float32)[:, None, None]
        planes /= np.array(self.std, dtype=np.float32)[:, None, None]
        return planes

    def load(self, path: Path) -> NDArray[np.float32]:
        """One image as the model's input, float32 (3, size, size).

        ``.npy`` files need nothing but numpy: uint8 (size, size, 3), RGB, or float32 (3, size, size), taken as
        normalised already.  Image files, and arrays of another height and width, need Pillow.

        Raises:
            DeviceError: missing, unreadable or of another form.
            DeviceMissingError: Pillow is needed and not there.
        """
        if not path.is_file():
            raise DeviceError(f"no image at {path}.", "Check the path.")
        if path.suffix.lower() == ".npy":
            return self._from_array(_read_array(path), path)
        pillow = _require_pillow(f"{path} is an image file")
        try:
            with pillow.open(path) as image:
                return self._from_image(image)
        except (OSError, ValueError, SyntaxError, IndexError, pillow.DecompressionBombError) as error:
            raise DeviceError(f"cannot read the image {path} ({error}).", "Give a JPEG, PNG or .npy file.") from error

    def _from_array(self, array: NDArray[Any], path: Path) -> NDArray[np.float32]:
        square = (self.size, self.size)
        if array.dtype == np.float32 and array.shape == (3, *square):
            return array
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
            if array.shape[:2] == square:
                return self._one(array)
            there = f"{array.shape[1]} x {array.shape[0]} pixels"
            pillow = _require_pillow(f"{path} is {there}, not {self.size} x {self.size}")
            return self._from_image(pillow.fromarray(array))
        raise DeviceError(
            f"{path} holds {array.dtype} {array.shape}.",
            f"Give uint8 ({self.size}, {self.size}, 3), RGB, or normalised float32 (3, {self.size}, {self.size}).",
        )

    def _from_image(self, image: Any) -> NDArray[np.float32]:
        """Resize the short side to ``size / crop_fraction`` (bilinear, antialiased), crop the centre, normalise."""
        image = _to_rgb(image)
        short = max(self.size, round(self.size / self.crop_fraction))
        scale = short / min(image.size)
        extent = tuple(max(short, round(side * scale)) for side in image.size)
        if extent != image.size:
            # Pillow 9.0, which JetPack 6 brings, has no Image.Resampling.
            image = image.resize(extent, _require_pillow("resizing").BILINEAR)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        cropped = image.crop((left, top, left + self.size, top + self.size))
        return self._one(np.asarray(cropped))

    def _one(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        planes: NDArray[np.float32] = self.normalize(pixels[None])[0]
        return planes


def read_preprocessing(path: Path) -> Preprocessing:
    """The preprocessing in a bundle.

    Raises:
        DeviceError: missing, or not what this program knows.
    """
    value = read_json(path)
    try:
        if (value["layout"], value["interpolation"], value["channels"]) != ("NCHW", "bilinear", "RGB"):
            raise ValueError("another layout, interpolation or channel order")
        mean, std = (tuple(float(number) for number in value[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("mean and std must have three values, std positive ones")
        return Preprocessing(int(value["size"]), float(value["crop_fraction"]), mean, std)
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"{path} is not a preprocessing that this program knows ({error}).") from error


def _read_array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DeviceError(f"cannot read the array {path} ({error}).", "Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise DeviceError(f"{path} is an archive, not one array.", "Write it with numpy.save.")
    return array


def _require_pillow(why: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DeviceMissingError(
            f"{why}: that needs Pillow, which is not installed.",
            "sudo apt-get install python3-pil, or give a .npy array of the model's size.",
        ) from error
    return Image


def _to_rgb(image: Any) -> Any:
    """Any image as RGB of 8 bits, by the host's rules: grey levels of 16 bits are scaled, transparency is dropped."""
    pillow = _require_pillow("an image")
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.uint32)
        image = pillow.fromarray(((wide + 128) // 257).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
