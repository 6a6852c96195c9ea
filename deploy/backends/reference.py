"""ONNX Runtime with no more than its basic optimisations, for files that the full ones compute wrongly.

ONNX Runtime 1.32 fuses FP8 Q/DQ pairs as if they were INT8: the logits of a ResNet-18 came out with an error of 2.4
times their energy, against 0.007 without the fusion; on processors without VNNI the fused INT8 products saturate
(docs/decisions/quantisers.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iekd.deploy.backends import Array, check_images, get_backend
from iekd.errors import InputError


class ReferenceSession:
    """See :class:`iekd.deploy.backends.Session`.

    Args:
        path: an ONNX file.
        threads: intra-op threads; 0 for the runtime's default.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        import onnxruntime

        checked = get_backend("onnxruntime").load(path, threads=threads)  # refuses what is no classifier
        self.input_shape, self._description = checked.input_shape, checked.describe()
        self.batch_range = checked.batch_range
        checked.close()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        if self._session is None:
            raise InputError("this session is closed.", "Load the file again.")
        check_images(images, self.input_shape)
        name = self._session.get_inputs()[0].name
        logits: Array = self._session.run(None, {name: np.ascontiguousarray(images)})[0]
        return logits

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return {**self._description, "provider": f"{self._description['provider']}, basic optimisations"}

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session = None
