"""What this machine can do, and the exact command for each part that is missing.  Nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One part of the environment."""

    name: str
    status: Literal["ok", "missing", "info"]
    detail: str
    fix: str = ""
    """The command that brings it, where it is missing."""


def examine() -> list[Finding]:
    """Look at this machine; never raises."""
    jetpack = _jetpack()
    checks: tuple[Callable[[], Finding], ...] = (
        _machine,
        _torch,
        _onnxruntime,
        _gpu,
        _cuda,
        lambda: _tensorrt(on_jetson=jetpack is not None),
    )
    findings = [check() for check in checks]
    if jetpack is not None:
        findings += [Finding("JetPack", "ok", jetpack), _power_mode()]
    return findings


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding(
        "machine", "info", f"{platform.machine()}, {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    )


def _torch() -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("PyTorch", "missing", "not installed", "pip install iekd-compress")
    return Finding("PyTorch", "ok", f"{version}, timm {_version('timm') or 'missing'}")


def _onnxruntime() -> Finding:
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if cpu and gpu:
        return Finding(
            "ONNX Runtime",
            "missing",
            "onnxruntime and onnxruntime-gpu are both installed; they overwrite one another",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'iekd-compress[gpu]'",
        )
    if cpu or gpu:
        return Finding("ONNX Runtime", "ok", f"{cpu or gpu} ({'CUDA' if gpu else 'CPU'} package)")
    return Finding("ONNX Runtime", "missing", "not installed", "pip install 'iekd-compress[cpu]'")


def _gpu() -> Finding:
    query = "name,compute_cap,driver_version,memory.total"
    answer = _run("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    if answer:
        name, sm, driver, memory = (part.strip() for part in answer.splitlines()[0].split(",", 3))
        return Finding("GPU", "ok", f"{name}, SM {sm}, driver {driver}, {memory}")
    board = _read("/proc/device-tree/model")
    if board.startswith("NVIDIA"):
        return Finding("GPU", "ok", board.strip("\0\n"))
    return Finding("GPU", "missing", "no NVIDIA GPU or no driver", "needed for TensorRT only; install NVIDIA's driver")


def _cuda() -> Finding:
    answer = _run("nvcc", "--version")
    release = re.search(r"release ([\d.]+)", answer)
    if release:
        return Finding("CUDA toolkit", "info", release.group(1))
    return Finding("CUDA toolkit", "info", "no nvcc; the wheels of torch and TensorRT bring their own libraries")


def _tensorrt(*, on_jetson: bool) -> Finding:
    version = _version("tensorrt")
    if version is None:
        fix = "sudo apt-get install nvidia-jetpack" if on_jetson else "pip install 'iekd-compress[gpu]'"
        return Finding("TensorRT", "missing", "not installed", fix)
    if tuple(int(part) for part in version.split(".")[:2]) < (10, 3):
        return Finding(
            "TensorRT", "missing", f"{version} is too old", "10.3 or later: JetPack 6.1, or pip install -U tensorrt"
        )
    return Finding("TensorRT", "ok", version)


def _jetpack() -> str | None:
    """L4T release of a Jetson, or None elsewhere."""
    text = _read("/etc/nv_tegra_release")
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    return f"L4T {found.group(1)}.{found.group(2)}" if found else None


def _power_mode() -> Finding:
    answer = _run("nvpmodel", "-q")
    mode = answer.splitlines()[0].partition(":")[2].strip() if answer else ""
    return Finding("power mode", "info", mode or "unknown: nvpmodel did not answer")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
