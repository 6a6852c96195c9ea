"""Backends: one small protocol between a file and whatever runs it.

The benchmark, the verification and the accuracy check know only this page.  Adding a backend touches its own file and
one line of ``BACKENDS``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from iekd.errors import InputError, unknown_name

Array = NDArray[np.float32]
BatchRange = tuple[int, int | None]
"""Smallest and largest batch; None where nothing limits it."""


class Session(Protocol):
    """A loaded model, ready to answer.  Sessions are reusable and not thread-safe."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def batch_range(self) -> BatchRange:
        """Smallest and largest batch of a call; :func:`logits_of` takes any number of images to any session."""
        ...

    def run(self, images: Array) -> Array:
        """Logits (N, classes) of a float32 batch (N, channels, height, width).

        Raises:
            InputError: the shape or the type of ``images`` is not what the model takes.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What identifies this session in a report: backend, provider, version, threads."""
        ...

    def close(self) -> None:
        """Give back what the session holds; calling it twice is harmless."""
        ...


class Backend(Protocol):
    """A module-level object that opens files."""

    def require(self) -> None:
        """Raise EnvironmentMissingError, naming the exact pip command, unless the runtime can be used here."""
        ...

    def load(self, path: Path, *, threads: int = 0, batch: int = 1) -> Session:
        """Open an exported file.

        Args:
            path: the file.
            threads: 0 for the runtime's default.
            batch: the largest that is meant to be run; only a runtime that builds for sizes asks.

        Raises:
            InputError: the file is missing, damaged or of the wrong kind.
            EnvironmentMissingError: the runtime is not installed; the message names the exact pip command.
        """
        ...


BACKENDS = {
    "onnxruntime": "iekd.deploy.backends.onnxruntime:CPU",
    "onnxruntime-cuda": "iekd.deploy.backends.onnxruntime:CUDA",
    "tensorrt": "iekd.deploy.backends.tensorrt:TENSORRT",
    "onnxruntime-tensorrt": "iekd.deploy.backends.onnxruntime:TENSORRT",
    "openvino": "iekd.deploy.backends.openvino:EXACT",
    "openvino-bf16": "iekd.deploy.backends.openvino:BF16",
    "torch": "iekd.deploy.backends.torch:CPU",
}


def get_backend(name: str) -> Backend:
    """The backend of that name; its runtime is imported only when a file is opened."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)
    return backend


def logits_of(session: Session, images: Array) -> Array:
    """Logits (N, classes) of any number N >= 1 of images, in calls of the size that the session takes.

    Where the last call would be smaller than the session's smallest, its last image fills it up.
    """
    least, most = session.batch_range
    step = most or len(images)
    parts = []
    for at in range(0, len(images), step):
        part = images[at : at + step]
        missing = max(0, least - len(part))
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append(session.run(filled)[: len(part)])
    return np.concatenate(parts)


def check_images(
    images: Array, shape: tuple[int, int, int], most: int | None = None, *, fixed: int | None = None
) -> None:
    """Raise InputError unless ``images`` is a float32 batch of ``shape``, of up to ``most`` or exactly ``fixed``."""
    if images.dtype != np.float32:
        raise InputError(f"the model takes float32 images, not {images.dtype}.", "Convert them with the preprocessing.")
    if images.ndim != 4 or images.shape[1:] != shape or not len(images) or (most and len(images) > most):
        raise InputError(
            f"the model takes images of shape (N, {', '.join(map(str, shape))}), not {images.shape}.",
            "Preprocess them as the file's metadata says.",
        )
    if fixed and len(images) != fixed:
        raise InputError(
            f"the model takes exactly {fixed} image(s) a call, not {len(images)}.",
            "Its batch is fixed: export it with a dynamic one.",
        )
