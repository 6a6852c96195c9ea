"""What is in the bundle: verified first, then read."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError
from .files import read_json
from .images import Preprocessing, read_preprocessing
from .manifest import MANIFEST, sha256_of, verify


@dataclass(frozen=True)
class Bundle:
    """The files of a bundle whose digests were right."""

    folder: Path
    name: str
    """Of the model."""
    digest: str
    """SHA-256 of the manifest: stands for every file."""
    models: dict[str, Path]
    """ONNX file by precision."""
    digests: dict[str, str]
    """SHA-256 of each model."""
    pixels: NDArray[np.uint8]
    """(N, H, W, 3), resized and cropped already."""
    labels: NDArray[np.int64]
    """(N,)"""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    limits: Limits
    host: dict[str, Any]
    """``device`` and, by precision, ``models``: what the host measured."""


@dataclass(frozen=True)
class Limits:
    """What the user asked for; None for no limit."""

    min_accuracy: float | None
    """Of the bundled images, 0..1."""
    max_latency_ms: float | None
    """Of the median."""


def open_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``.

    Raises:
        DeviceError: a file is missing, damaged or of another form; the message names it.
    """
    manifest = verify(folder)
    entries: dict[str, dict[str, Any]] = manifest["files"]
    models = {Path(path).stem: folder / path for path in sorted(entries) if path.startswith("models/")}
    if not models:
        raise DeviceError(f"the bundle in {folder} holds no model.", "Make it again.")
    pixels, labels = _read_images(folder / "images.npz")
    limits = read_json(folder / "limits.json")
    return Bundle(
        folder=folder,
        name=str(manifest.get("name", "model")),
        digest=sha256_of(folder / MANIFEST),
        models=models,
        digests={precision: entries[f"models/{path.name}"]["sha256"] for precision, path in models.items()},
        pixels=pixels,
        labels=labels,
        classes=tuple(read_json(folder / "classes.json")),
        preprocessing=read_preprocessing(folder / "preprocessing.json"),
        limits=Limits(limits.get("min_accuracy"), limits.get("max_latency_ms")),
        host=read_json(folder / "host.json"),
    )


def _read_images(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels, labels = archive["images"], archive["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DeviceError(f"{path} cannot be read ({error}).", "Make the bundle again.") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1] or not len(pixels):
        raise DeviceError(f"{path} holds {pixels.dtype} {pixels.shape} and labels {labels.shape}.", "Make it again.")
    return pixels, labels.astype(np.int64)
