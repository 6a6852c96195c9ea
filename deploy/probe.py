"""Asking this machine: its files, commands, driver and installed packages.  Nothing here raises.

No package is imported to be asked.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
"""Of the file system that is read."""


class Answer(NamedTuple):
    """What a command said; ``status`` is None where it does not exist or did not end in time."""

    status: int | None
    text: str


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str) -> Path | None:
    """Folder of an installed package, which is not imported."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def package_text(name: str, file: str) -> str:
    """A file of an installed package, or nothing."""
    folder = package(name)
    return text(folder / file) if folder else ""


def run(*command: str, seconds: float = 5) -> Answer:
    """What ``command`` says within ``seconds``, on standard output or standard error."""
    if shutil.which(command[0]) is None:
        return Answer(None, "")
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Answer(None, f"{command[0]} did not answer within {seconds:g} s")
    except OSError as error:
        return Answer(None, f"{command[0]}: {error.strerror}")
    return Answer(done.returncode, done.stdout.decode(errors="replace").strip())


def read(path: str) -> str:
    """A file by its path below ``ROOT``, or nothing."""
    return text(ROOT / path)


def text(path: Path) -> str:
    """A file, or nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def board() -> str:
    """A Jetson's model, or nothing."""
    model = read("proc/device-tree/model").strip("\0\n ")
    return model if model.startswith("NVIDIA") else ""


def driver_cuda(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """The latest CUDA that the driver takes; asked of its library, which needs no initialisation for that."""
    number = ctypes.c_int(0)
    try:
        if ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(number)) != 0 or number.value <= 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10
