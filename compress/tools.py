"""Single stages on files of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iekd.deploy.backends import get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.export import export_onnx
from iekd.deploy.verify import verify
from iekd.errors import InputError
from iekd.files import atomic_file, refuse_output_file
from iekd.models.checkpoint import load_artefact

LATENCY_IMAGES = 64


def export_artefact(folder: Path, output: Path) -> str:
    """Export an artefact, verified on images of noise where no data set is at hand; returns what to tell the user.

    Raises:
        InputError: not an artefact, or ``output`` is a folder or lies in the artefact, which would be none any more.
        VerificationError: the file does not compute what the network computes.
    """
    refuse_output_file(output, folder)
    if output.suffix.lower() != ".onnx":
        raise InputError(f"{output} is no name of an ONNX file.", "Let it end in .onnx.")
    artefact = load_artefact(folder)
    network, name, size = artefact.network.eval(), artefact.architecture.name, artefact.preprocessing.size
    with atomic_file(output) as unverified:
        export_onnx(network, unverified, preprocessing=artefact.preprocessing, classes=artefact.classes, name=name)
        session = get_backend("onnxruntime").load(unverified)
        noise = np.random.default_rng(0).standard_normal((16, 3, size, size), dtype=np.float32)
        found = verify(session, TorchSession(network, session.input_shape), noise, name=name)
    return f"verified on 16 images of noise, largest difference {found.relative_difference:.1e} of the largest logit"
