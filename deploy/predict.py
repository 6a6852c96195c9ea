"""Classify image files with an exported file and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from iekd.deploy.backends import get_backend
from iekd.deploy.export import read_metadata
from iekd.deploy.openvino_format import is_openvino
from iekd.errors import InputError


def predict(model: Path, images: Sequence[Path], *, backend: str | None = None) -> Iterator[tuple[Path, str, float]]:
    """For each image its path, the class name and the share that softmax gives it.

    Args:
        model: a file that iekd-compress wrote, ONNX or .xml.
        images: image files.
        backend: None: OpenVINO for an .xml, which nothing else runs, ONNX Runtime for all others.

    Raises:
        InputError: the file is not one of ours, or an image cannot be read.
    """
    metadata = read_metadata(model)
    session = get_backend(backend or ("openvino" if is_openvino(model) else "onnxruntime")).load(model)
    for path in images:
        try:
            with Image.open(path) as image:
                pixels = metadata.preprocessing(image)
        except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
            raise InputError(f"cannot read the image {path} ({error}).", "Give a JPEG or PNG file.") from error
        logits = session.run(pixels[None])[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        best = int(shares.argmax())
        yield path, metadata.classes[best], float(shares[best] / shares.sum())
