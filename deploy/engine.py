"""TensorRT engines on this machine, for the command line and the pipeline: the device's code with the host's errors."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iekd.deploy.device.engine import BuildSettings, build_engine, this_machine
from iekd.deploy.device.engine_cache import Manifest, check_engine, onnx_sha256
from iekd.deploy.device.engine_watch import Log, Progress
from iekd.deploy.device.errors import DeviceError, DeviceInputError, DeviceMissingError, OutOfMemoryError
from iekd.deploy.device.trt_version import version_numbers
from iekd.errors import EnvironmentMissingError, InputError
from iekd.files import atomic_file

__all__ = [
    "BuildSettings",
    "BuiltEngine",
    "build",
    "cache_folder",
    "check_precision",
    "domain_errors",
    "source_of",
    "why_foreign",
]

OLDEST_SM = {"fp8": (8, 9), "bf16": (8, 0)}
"""Number types that not every GPU computes in (NVIDIA, TensorRT support matrix); Orin, at 8.7, has no FP8."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the cache."""

    path: Path
    manifest: Manifest
    layers: Path
    """The inspector's JSON: what the engine consists of."""

    def copy_to(self, output: Path) -> Path:
        """Copy the engine, and beside it the manifest, without which no session loads it, and the layers."""
        output.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".layers.json", self.path.suffix):
            target = output if suffix == self.path.suffix else output.with_suffix(suffix)
            with atomic_file(target) as temporary:
                shutil.copyfile(self.path.with_suffix(suffix), temporary)
        return output


def build(
    onnx: Path,
    settings: BuildSettings | None = None,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> BuiltEngine:
    """The engine for an ONNX file on this machine, out of the cache or built into it.

    Args:
        onnx: an image classifier; its precision is the engine's.
        settings: how to build.
        cache: folder of engines; the user's cache when None.
        progress: called with the share done and the phase.
        log: called with each line of the log.

    Raises:
        InputError: the file, a setting or the cache cannot be used, or TensorRT does not build it; it says why.
        EnvironmentMissingError: no GPU, no TensorRT, one older than 10.3, or too little memory.
    """
    with domain_errors():
        path = build_engine(onnx, settings or BuildSettings(), cache or cache_folder(), progress=progress, log=log)
        return BuiltEngine(path, Manifest.read(path), path.with_suffix(".layers.json"))


def why_foreign(engine: Path) -> str:
    """Why an engine cannot be loaded on this machine, by its manifest alone; empty where it can.

    Raises:
        EnvironmentMissingError: this machine has no GPU or no TensorRT at all.
    """
    with domain_errors():
        here = this_machine()
        try:
            check_engine(engine, here)
        except DeviceInputError as error:
            return error.message
    return ""


def source_of(engine: Path) -> Path:
    """The ONNX file that an engine was built from, by its manifest.

    Raises:
        InputError: no manifest, or that file is missing or has changed.
    """
    with domain_errors():
        manifest = Manifest.read(engine)
    onnx = Path(manifest.onnx)
    if not onnx.is_file() or onnx_sha256(onnx) != manifest.identity.onnx_sha256:
        raise InputError(f"{onnx}, which {engine} was built from, is missing or has changed.", "Give the ONNX file.")
    return onnx


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/iekd-compress/engines``, or that in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iekd-compress" / "engines"


def check_precision(precision: str, sm: str | None = None) -> None:
    """Raise InputError when a GPU cannot compute in ``precision``.

    Args:
        precision: such as ``fp8``.
        sm: compute capability of the GPU, such as ``8.7``; this machine's when None.
    """
    if precision not in OLDEST_SM:
        return
    if sm is None:
        with domain_errors():
            sm = this_machine().sm
    needed = OLDEST_SM[precision]
    if version_numbers(sm) < needed:
        raise InputError(
            f"{precision} needs a GPU of SM {needed[0]}.{needed[1]} or later; this one has {sm}.",
            "Choose fp16 or int8.",
        )


@contextlib.contextmanager
def domain_errors() -> Iterator[None]:
    """Turn what the device's code raises into the errors that the command line knows."""
    try:
        yield
    except (DeviceMissingError, OutOfMemoryError) as error:
        raise EnvironmentMissingError(error.message, error.hint) from error
    except DeviceError as error:
        raise InputError(error.message, error.hint) from error
