"""Single stages on files of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iekd.deploy.backends import get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.export import export_onnx
from iekd.deploy.verify import verify
from iekd.files import refuse_output_file
from iekd.models.checkpoint import load_artefact

LATENCY_IMAGES = 64


def export_artefact(folder: Path, output: Path) -> str:
    """Export an artefact, verified on images of noise where no data set is at hand; returns what to tell the user.

    Raises:
        InputError: not an artefact, or ``output`` is a folder or lies in the artefact, which would be none any more.
        VerificationError: the file does not compute what the network computes.
    """
    refuse_output_file(output, folder)
    artefact = load_artefact(folder)
    network = artefact.network.eval()
    export_onnx(
        network,
        output,
        preprocessing=artefact.preprocessing,
        classes=artefact.classes,
        name=artefact.architecture.name,
    )
    session = get_backend("onnxruntime").load(output)
    size = artefact.preprocessing.size
    noise = np.random.default_rng(0).standard_normal((16, 3, size, size), dtype=np.float32)
    found = verify(session, TorchSession(network, session.input_shape), noise, name=artefact.architecture.name)
    return f"verified on 16 images of noise, largest difference {found.relative_difference:.1e} of the largest logit"
