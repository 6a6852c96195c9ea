"""NVIDIA's genuine Python bindings of TensorRT, and stub libraries over which they can be imported anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

STUBS = Path(__file__).parent / "deploy" / "tensorrt_stubs"

WHEELS = {
    "10.2": "tensorrt_cu12_bindings==10.2.0",
    "10.3": "tensorrt_cu12_bindings==10.3.0",
    "10.16": "tensorrt_cu13_bindings==10.16.1.11",
    "11.4": "tensorrt_cu13_bindings==11.4.0.106",
}
"""JetPack 6.1 brings 10.3, JetPack 7.2 brings 10.16; 10.2 is too old and must be refused."""
SERVED = ("10.3", "10.16", "11.4")


class UnavailableError(Exception):
    """Why the bindings, or the compiler for the stubs, cannot be had here."""


def bindings(version: str, cache: Path) -> Path:
    """Folder that holds ``tensorrt_bindings`` of that version; downloaded once."""
    folder = cache / version
    if folder.is_dir():
        return folder
    temporary = cache / f".{version}.{os.getpid()}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--target", str(temporary), WHEELS[version]]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if answer.returncode:
        shutil.rmtree(temporary, ignore_errors=True)
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"pip cannot bring {WHEELS[version]}: {last}")
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(temporary)
    return folder


def stub_libraries(major: str, folder: Path) -> Path:
    """Folder with the three libraries that the bindings of that major version load."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{name}.so.{major}"
        compile_library(STUBS / "nvinfer.c", library, f"-Wl,-soname,{library.name}")
    return folder


def host_cudart(folder: Path) -> Path:
    """A CUDA runtime in host memory."""
    folder.mkdir(parents=True, exist_ok=True)
    return compile_library(STUBS / "cudart.c", folder / "libcudart_host.so")


def compile_library(source: Path, library: Path, *options: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler for the stub libraries")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *options]
    subprocess.run([*command, "-o", str(library), str(source)], check=True, capture_output=True, text=True)
    return library
