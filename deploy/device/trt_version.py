"""TensorRT is there, and new enough; asked before any module is imported that needs it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from .errors import DeviceMissingError

OLDEST = (10, 3)
"""JetPack 6.1.  Older ones lack weight-stripped plans or strong typing for the operators that we export."""


def require_tensorrt() -> str:
    """The version of the TensorRT installed here.

    Raises:
        DeviceMissingError: none, or one older than 10.3.
    """
    jetson = Path("/etc/nv_tegra_release").exists()
    try:
        version = str(importlib.import_module("tensorrt").__version__)
    except ImportError as error:
        raise DeviceMissingError(
            f"TensorRT cannot be imported: {error}.",
            "sudo apt-get install nvidia-jetpack" if jetson else "pip install 'iekd-compress[gpu]'",
        ) from error
    if version_numbers(version)[:2] < OLDEST:
        raise DeviceMissingError(
            f"TensorRT {version} is too old: 10.3 or later is needed.",
            "Flash JetPack 6.1 or later." if jetson else "pip install -U 'tensorrt>=10.3'",
        )
    return version


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``10.13.3.9.post1`` is (10, 13, 3, 9)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()
