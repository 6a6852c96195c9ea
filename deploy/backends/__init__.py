"""Backends: one small protocol between a file and whatever runs it.

The benchmark, the verification and the accuracy check know only this page.  Adding a backend touches its own file and
one line of ``BACKENDS``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iekd.errors import unknown_name

Array = NDArray[np.float32]


@runtime_checkable
class Session(Protocol):
    """A loaded model, ready to answer.  Sessions are reusable and not thread-safe."""

    input_shape: tuple[int, int, int]
    """Channels, height, width."""

    def run(self, images: Array) -> Array:
        """Logits (N, classes) of a contiguous float32 batch (N, channels, height, width).

        Raises:
            InputError: the shape or the type of ``images`` is not what the model takes.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What identifies this session in a report: backend, provider, version, precision, threads."""
        ...

    def close(self) -> None:
        """Give back what the session holds; calling it twice is harmless."""
        ...


class Backend(Protocol):
    """A module-level object that opens files."""

    def load(self, path: Path, *, threads: int = 0) -> Session:
        """Open an exported file.  ``threads`` 0 means the runtime's default.

        Raises:
            InputError: the file is missing, damaged or of the wrong kind.
            EnvironmentMissingError: the runtime is not installed; the message names the exact pip command.
        """
        ...


BACKENDS = {
    "onnxruntime": "iekd.deploy.backends.onnxruntime",
    "torch": "iekd.deploy.backends.torch",
}


def get_backend(name: str) -> Backend:
    """The backend of that name; its runtime is imported only now."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    backend: Backend = importlib.import_module(BACKENDS[name]).backend
    return backend
