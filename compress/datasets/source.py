"""What a labelled set of images is to the rest of the program."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from iekd.errors import InputError
from iekd.models.preprocessing import to_rgb

Labels = NDArray[np.int64]


class ImageSource(Protocol):
    """Images and their class indices, by number."""

    @property
    def targets(self) -> Sequence[int] | Labels:
        """Class index of each image, known without decoding any."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """Image ``index``, RGB, in the size in which it is stored; and its class index."""
        ...


class UnreadableImageError(InputError):
    """An image that cannot be decoded.

    Args:
        message: which, and why; or what a DataLoader makes of that when a worker process raises it, namely a text that
            ends with the traceback's last line.
    """

    _HINT = "Replace or remove it, or add --skip-bad-images to go on without it."

    def __init__(self, message: str) -> None:
        last_line = message.rstrip().rpartition("UnreadableImageError: ")[2]
        super().__init__(last_line.removesuffix(f"  {self._HINT}"), self._HINT)


def unreadable_image(label: str, reason: str) -> UnreadableImageError:
    """The error for the image that messages call ``label``."""
    return UnreadableImageError(f"cannot read image {label}: {reason}.")


class Source(ABC):
    """An image source that can also name, identify and check its images.

    Args:
        targets: class index of each image (N,).
    """

    in_memory = False
    """Images need no decoding, so that worker processes would not pay."""

    def __init__(self, targets: Sequence[int] | Labels) -> None:
        self.targets: Labels = np.asarray(targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        return self.image(index), int(self.targets[index])

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image ``index``, RGB.

        Raises:
            UnreadableImageError: it cannot be decoded; the message names it.
        """

    @abstractmethod
    def label(self, index: int) -> str:
        """What messages call image ``index``, such as its path."""

    def identity(self, index: int) -> str:
        """Tells image ``index`` from others without decoding it, the same on every machine; may be empty."""
        return ""

    def stamp(self, index: int) -> str | None:
        """Changes when the stored bytes of image ``index`` may have changed; None where nothing need be checked."""
        return None

    def check(self, index: int) -> None:
        """Read image ``index`` to its end.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        self.image(index)


class Subset(Source):
    """Some images of a source, in the order given.

    Args:
        source: the whole.
        indices: image numbers in ``source``.
    """

    def __init__(self, source: Source, indices: Sequence[int] | Labels) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)
        self._source = source
        self.in_memory = source.in_memory
        super().__init__(source.targets[self._indices])

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return self._source.image(int(self._indices[index]))

    def label(self, index: int) -> str:  # noqa: D102
        return self._source.label(int(self._indices[index]))

    def identity(self, index: int) -> str:  # noqa: D102
        return self._source.identity(int(self._indices[index]))

    def stamp(self, index: int) -> str | None:  # noqa: D102
        return self._source.stamp(int(self._indices[index]))

    def check(self, index: int) -> None:  # noqa: D102
        self._source.check(int(self._indices[index]))


class ArraySource(Source):
    """Images held in memory.

    Args:
        pixels: uint8 (N, H, W, 3).
        targets: class indices (N,).
        name: for messages.
    """

    in_memory = True

    def __init__(self, pixels: NDArray[np.uint8], targets: Sequence[int] | Labels, name: str) -> None:
        super().__init__(targets)
        self._pixels = pixels
        self._name = name

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return Image.fromarray(self._pixels[index])

    def label(self, index: int) -> str:  # noqa: D102
        return f"{index} of {self._name}"


def decode(file: IO[bytes] | bytes, label: str) -> Image.Image:
    """The RGB image in an open file or in bytes.

    Raises:
        UnreadableImageError: not an image, or a damaged one.
    """
    with decoding(label):
        return to_rgb(Image.open(io.BytesIO(file) if isinstance(file, bytes) else file))


def check_decodes(file: IO[bytes] | bytes, label: str) -> None:
    """Read an image to its end, at a fraction of the cost of :func:`decode` where the format allows (JPEG).

    Raises:
        UnreadableImageError: not an image, or a damaged one.
    """
    with decoding(label):
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        image.draft("RGB", (1, 1))  # JPEG: all of the data is parsed, but an eighth of each side computed
        image.load()


@contextmanager
def decoding(label: str) -> Iterator[None]:
    """Turn what Pillow raises on a bad image into :class:`UnreadableImageError`."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise unreadable_image(label, "it is not an image, or of an unknown format") from error
    except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
        raise unreadable_image(label, " ".join(str(error).split()) or type(error).__name__) from error


def evenly_spaced(length: int, count: int) -> range:
    """At most ``count`` of the numbers below ``length``, evenly spaced, the first among them."""
    return range(0, length, max(1, -(-length // count)))
