"""The parts that the board must bring itself, and what to say where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import DeviceError, DeviceMissingError, OutOfMemoryError

EXIT_KEPT, EXIT_MISSED, EXIT_BAD_INPUT, EXIT_MISSING_PART, EXIT_DEFECT = 0, 1, 2, 3, 70


def require_tensorrt() -> ModuleType:
    """The ``tensorrt`` module.

    Raises:
        DeviceMissingError: not there; on a board only JetPack brings it.
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise DeviceMissingError(
            f"TensorRT's Python module cannot be imported ({error}).",
            "On a Jetson, JetPack 6.1 or later brings it: sudo apt-get install nvidia-jetpack (a virtual environment "
            "needs --system-site-packages).  A board without TensorRT: python3 run.py --backend onnxruntime.",
        ) from error


def require_onnxruntime() -> ModuleType:
    """The ``onnxruntime`` module.

    Raises:
        DeviceMissingError: not there; the message names the pip command.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DeviceMissingError(
            f"ONNX Runtime cannot be imported ({error}).",
            "pip install onnxruntime.  On a Jetson, leave --backend out: TensorRT is there.",
        ) from error


def exit_code_of(error: DeviceError) -> int:
    """What the program ends with after ``error``; as the host's ``domain_errors`` has it."""
    return EXIT_MISSING_PART if isinstance(error, (DeviceMissingError, OutOfMemoryError)) else EXIT_BAD_INPUT
