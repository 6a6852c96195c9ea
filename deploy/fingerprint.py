"""What ran on what: enough to tell whether two figures may be compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from iekd.deploy.results import Fingerprint

PACKAGES = (
    *("iekd-compress", "torch", "timm", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "openvino"),
    *("nncf", "nvidia-modelopt", "onnxconverter-common", "torch-pruning"),
)


def fingerprint(threads: int) -> Fingerprint:
    """Describe this machine.  Whatever cannot be read is left out or called unknown; this never raises.

    Args:
        threads: that the measured sessions used.
    """
    return Fingerprint(
        device=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        memory_gib=round(_memory_bytes() / 2**30, 1),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_versions(),
        gpu=_gpu_name(),
        clocks=_clocks(),
        extra=_instruction_sets(),
    )


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return _read("/proc/device-tree/model").strip("\0\n") or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu_name() -> str | None:
    """The first GPU and its driver, by nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None


def _clocks() -> str:
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    low = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq").strip()
    high = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq").strip()
    if not governor:
        return "unknown"
    return f"{'locked' if low == high else 'floating'} (governor {governor})"


def _instruction_sets() -> dict[str, str]:
    flags = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), "").split()
    known = [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if name in flags
    ]
    return {"instruction sets": " ".join(known)} if known else {}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
