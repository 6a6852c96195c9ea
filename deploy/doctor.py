"""What this machine can do, and the exact command for each part that is missing.

No package is imported to be asked: their metadata and files are read, so the answer comes in a fraction of a second.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable
from typing import Literal, NamedTuple

from iekd.deploy import machine, probe

GIB = 2**30
LEAST_MEMORY = 8 * GIB
"""Memory and swap together, below which building an engine runs out of memory on boards (ultralytics issue 19614)."""
TENSORRT_LEAST = (10, 3)
L4T_LEAST = (36, 4)
L4T_OF_JETPACK_7 = (38,)
_JETPACK_6_TORCH = (
    'install NVIDIA\'s PyTorch wheel for this JetPack (its guide "Installing PyTorch for Jetson Platform"): '
    "PyTorch's own wheel knows the CPU only there.  A bundle's run.py needs no PyTorch"
)


class Finding(NamedTuple):
    """One part of the environment."""

    name: str
    status: Literal["ok", "missing", "info"]
    detail: str
    fix: str = ""
    """The command that brings it, where it is missing."""
    required: bool = False
    """Without it no job can run."""


def examine() -> list[Finding]:
    """Look at this machine; never raises."""
    release = machine.l4t(probe.read("etc/nv_tegra_release"))
    gpu = _gpu()
    has_gpu = gpu.status == "ok"
    driver_cuda = probe.driver_cuda()
    findings = [
        _machine(),
        _memory(),
        _torch(has_gpu=has_gpu, driver_cuda=driver_cuda, release=release),
        _onnxruntime(wants_cuda=has_gpu and release is None),
        _openvino(),
        gpu,
        _cuda(driver_cuda),
        _tensorrt(has_gpu=has_gpu, on_jetson=release is not None),
    ]
    if release is not None:
        findings += [_jetpack(release), _power_mode()]
    return findings


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether a job can run at all: PyTorch and a runtime are here."""
    return not any(finding.required and finding.status == "missing" for finding in findings)


def _machine() -> Finding:
    text = probe.read("proc/cpuinfo")
    name = machine.cpu_name(text) or probe.board() or platform.machine()
    sets = ", ".join(machine.instruction_sets(text)) or "no instructions for INT8 or BF16"
    cores = len(os.sched_getaffinity(0))
    return Finding("machine", "info", f"{name}, {cores} cores, {sets}; Python {platform.python_version()}")


def _memory() -> Finding:
    known = machine.memory(probe.read("proc/meminfo"))
    if "MemTotal" not in known:
        return Finding("memory", "info", "unknown: /proc/meminfo does not say")
    total, swap = known["MemTotal"], known.get("SwapTotal", 0)
    parts = [f"{total / GIB:.1f} GiB", f"swap {swap / GIB:.1f} GiB" if swap else "no swap"]
    if "MemAvailable" in known:
        parts.insert(1, f"{known['MemAvailable'] / GIB:.1f} available")
    limit = probe.read("sys/fs/cgroup/memory.max") or probe.read("sys/fs/cgroup/memory/memory.limit_in_bytes")
    if limit.strip().isdigit() and int(limit) < total:
        total = int(limit)
        parts.insert(1, f"this container may use {total / GIB:.1f}")
    if total + swap >= LEAST_MEMORY:
        return Finding("memory", "ok", ", ".join(parts))
    size = -(-(LEAST_MEMORY - total - swap) // GIB)
    file = "/swapfile"
    fix = f"sudo fallocate -l {size}G {file} && sudo chmod 600 {file} && sudo mkswap {file} && sudo swapon {file}"
    return Finding("memory", "missing", ", ".join(parts) + ": little for building engines", fix)


def _torch(*, has_gpu: bool, driver_cuda: tuple[int, int] | None, release: tuple[int, ...] | None) -> Finding:
    version = probe.version("torch")
    if version is None:
        return Finding("PyTorch", "missing", "not installed", "pip install iekd-compress", required=True)
    built = re.search(r"^cuda\b[^=]*=\s*['\"](\d+)\.(\d+)", probe.package_text("torch", "version.py"), re.MULTILINE)
    cuda = f"for CUDA {built[1]}.{built[2]}" if built else "CPU only"
    detail = f"{version}, {cuda}, timm {probe.version('timm') or 'missing'}"
    if has_gpu and built is None:
        fix = (
            "pip install --force-reinstall torch"
            if release is None or release >= L4T_OF_JETPACK_7
            else _JETPACK_6_TORCH
        )
        return Finding("PyTorch", "missing", f"{detail}: it does not use the GPU", fix)
    if built and driver_cuda and int(built[1]) > driver_cuda[0]:
        fix = f"update NVIDIA's driver to one for CUDA {built[1]}, or install PyTorch for CUDA {driver_cuda[0]}"
        return Finding("PyTorch", "missing", f"{detail}: the driver takes CUDA {_dotted(driver_cuda)} at most", fix)
    return Finding("PyTorch", "ok", detail, required=True)


def _onnxruntime(*, wants_cuda: bool) -> Finding:
    names = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-rocm")
    packages = {name: version for name in names if (version := probe.version(name))}
    to_gpu = f"pip uninstall -y {' '.join(packages)} && pip install 'iekd-compress[gpu]'"
    if not packages:
        extra = "gpu" if wants_cuda else "cpu"
        fix = f"pip install 'iekd-compress[{extra}]'"
        return Finding("ONNX Runtime", "missing", "not installed", fix, required=True)
    if len(packages) > 1:
        detail = f"{' and '.join(packages)} are installed; they overwrite one another"
        fix = to_gpu if wants_cuda else to_gpu.replace("[gpu]", "[cpu]")
        return Finding("ONNX Runtime", "missing", detail, fix, required=True)
    ((name, version),) = packages.items()
    providers = _providers()
    detail = f"{version} ({name}), providers: {', '.join(providers)}"
    if wants_cuda and "CUDA" not in providers:
        return Finding("ONNX Runtime", "missing", f"{detail}: it does not use the GPU", to_gpu)
    return Finding("ONNX Runtime", "ok", detail)


def _providers() -> list[str]:
    """Execution providers for which the installed ONNX Runtime brings a library."""
    known = {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO", "rocm": "ROCm", "migraphx": "MIGraphX"}
    folder = probe.package("onnxruntime")
    present = (
        {path.stem.rpartition("_")[2] for path in (folder / "capi").glob("libonnxruntime_providers_*.so")}
        if folder
        else ()
    )
    return ["CPU", *(name for key, name in known.items() if key in present)]


def _openvino() -> Finding:
    version = probe.version("openvino")
    if version:
        return Finding("OpenVINO", "ok", version)
    if platform.machine() != "x86_64":
        return Finding("OpenVINO", "info", "not installed; it is for x86")
    return Finding("OpenVINO", "missing", "not installed; it is for x86 edge boxes", "pip install openvino")


def _gpu() -> Finding:
    board = probe.board()
    answer = probe.run("nvidia-smi", f"--query-gpu={machine.GPU_QUERY}", "--format=csv,noheader")
    found = machine.gpus(answer.text) if answer.status == 0 else []
    sm_of_board = next((sm for name, sm in machine.BOARD_SM.items() if name in board), "")
    if not found and sm_of_board:
        return Finding("GPU", "ok", f"{board}, SM {sm_of_board}")
    if found:
        rows = []
        for gpu in found:
            parts = [gpu.name if not sm_of_board else board, f"SM {gpu.sm or sm_of_board or 'unknown'}"]
            rows.append(
                ", ".join([*parts, *([f"driver {gpu.driver}"] if gpu.driver else []), *filter(None, [gpu.memory])])
            )
        counted = [f"{rows.count(row)} x {row}" if rows.count(row) > 1 else row for row in dict.fromkeys(rows)]
        return Finding("GPU", "ok", "; ".join(counted))
    return _no_gpu(answer)


def _no_gpu(answer: probe.Answer) -> Finding:
    """Why nvidia-smi named no GPU."""
    first = next(iter(answer.text.splitlines()), "")
    if "version mismatch" in answer.text:
        return Finding("GPU", "missing", first, "sudo reboot    # the driver was updated under the running one")
    if "couldn't communicate" in answer.text:
        return Finding(
            "GPU", "missing", first, "sudo modprobe nvidia || sudo apt-get install --reinstall 'nvidia-dkms-*'"
        )
    if "not a valid field" in answer.text:
        return Finding("GPU", "missing", "a driver too old to tell the compute capability", _driver_install())
    if _nvidia_on_pci():
        inside = (probe.ROOT / ".dockerenv").exists() or (probe.ROOT / "run/.containerenv").exists()
        fix = "docker run --gpus all ..." if inside else _driver_install()
        return Finding("GPU", "missing", f"an NVIDIA GPU without a working driver {first}".rstrip(), fix)
    if answer.status is None and answer.text:
        return Finding("GPU", "missing", answer.text, "nvidia-smi    # by hand; a GPU that hangs needs a reboot")
    return Finding("GPU", "info", "no NVIDIA GPU; CUDA and TensorRT need one")


def _nvidia_on_pci() -> bool:
    """Whether a display controller (class 03) of NVIDIA (vendor 10de) is on the bus."""
    folder = probe.ROOT / "sys/bus/pci/devices"
    devices = folder.glob("*") if folder.is_dir() else ()
    return any(
        probe.text(device / "vendor").strip() == "0x10de" and probe.text(device / "class").startswith("0x03")
        for device in devices
    )


def _driver_install() -> str:
    ubuntu = re.search(r"^ID=\"?ubuntu", probe.read("etc/os-release"), re.MULTILINE)
    return (
        "sudo ubuntu-drivers install && sudo reboot" if ubuntu else "sudo apt-get install nvidia-driver && sudo reboot"
    )


def _cuda(driver_cuda: tuple[int, int] | None) -> Finding:
    beside = probe.ROOT / "usr/local/cuda/bin/nvcc"
    compiler = probe.run("nvcc" if shutil.which("nvcc") else str(beside), "--version")
    release = re.search(r"release ([\d.]+)", compiler.text)
    driver = f"the driver takes {_dotted(driver_cuda)}" if driver_cuda else "no driver"
    toolkit = (
        f"toolkit {release[1]}"
        if release
        else "no toolkit, which only building needs: the wheels bring their libraries"
    )
    return Finding("CUDA", "info", f"{driver}; {toolkit}")


def _tensorrt(*, has_gpu: bool, on_jetson: bool) -> Finding:
    version = next(filter(None, map(probe.version, ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"))), None)
    if version is None:  # a Debian package may come without metadata
        text = probe.package_text("tensorrt", "__init__.py")
        stated = re.search(r"^__version__\s*=\s*['\"]([\d.]+)", text, re.MULTILINE)
        version = stated[1] if stated else None
    if version is not None:
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        if numbers >= TENSORRT_LEAST:
            return Finding("TensorRT", "ok", version)
        fix = "flash JetPack 6.1 or later" if on_jetson else "pip install --upgrade tensorrt"
        return Finding("TensorRT", "missing", f"{version} is too old, {_dotted(TENSORRT_LEAST)} is the least", fix)
    if any((probe.ROOT / "usr/lib").glob("python3*/dist-packages/tensorrt")):
        fix = "python3 -m venv --system-site-packages .venv && .venv/bin/pip install 'iekd-compress[cpu]'"
        return Finding("TensorRT", "missing", "the system has it, this environment does not see it", fix)
    if on_jetson:
        return Finding(
            "TensorRT", "missing", "not installed", "sudo apt-get update && sudo apt-get install nvidia-jetpack"
        )
    if not has_gpu:
        return Finding("TensorRT", "info", "not installed; without a GPU it is of no use")
    return Finding(
        "TensorRT", "missing", "not installed", "pip uninstall -y onnxruntime && pip install 'iekd-compress[gpu]'"
    )


def _jetpack(release: tuple[int, ...]) -> Finding:
    package = probe.run("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
    version = package.text.partition("+")[0] if package.status == 0 and package.text else machine.jetpack(release)
    detail = f"{version or 'unknown'} (Jetson Linux {_dotted(release)})"
    if release < L4T_LEAST:
        return Finding(
            "JetPack", "missing", f"{detail} is too old", "flash JetPack 6.1 or later, which Orin and Thor take"
        )
    return Finding("JetPack", "ok", detail)


def _power_mode() -> Finding:
    mode = machine.power_mode(probe.run("nvpmodel", "-q").text)
    modes = machine.power_modes(probe.read("etc/nvpmodel.conf"))
    best = next((name for name in ("MAXN_SUPER", "MAXN") if name in modes), "")
    if not mode:
        fix = f"sudo nvpmodel -m {modes[best]}" if best else "sudo nvpmodel -q --verbose"
        return Finding("power mode", "missing", "unknown: nvpmodel -q names none", fix)
    if best and mode != best:
        return Finding(
            "power mode",
            "info",
            f"{mode}; {best} is the fastest",
            f"sudo nvpmodel -m {modes[best]} && sudo jetson_clocks",
        )
    return Finding("power mode", "info", mode)


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
