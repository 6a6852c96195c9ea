"""The CUDA runtime through ctypes: against NVIDIA's header and library, in host memory, and on a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_wheels as wheels

from iekd.deploy.device import cuda as cuda_module
from iekd.deploy.device.cuda import SIGNATURES, Cuda
from iekd.deploy.device.cuda_stream import DeviceBuffer, Event, PinnedBuffer, Stream
from iekd.deploy.device.errors import DeviceError, DeviceMissingError, OutOfMemoryError


def genuine(pattern: str) -> Path:
    """A file of NVIDIA's CUDA runtime wheel, which comes with PyTorch."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob(pattern)):
            return path
    pytest.skip(f"no CUDA runtime wheel here ({pattern}): it comes with PyTorch's CUDA build")


CTYPES = {
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "size_t": ctypes.c_size_t,
    "unsigned long long": ctypes.c_ulonglong,
    "cudaError_t": ctypes.c_int,
}


def ctype_of(declaration: str) -> Any:
    """The ctypes type for a parameter as the header declares it."""
    words = re.sub(r"__dv\(\w+\)|\bconst\b|\bstruct\b", "", declaration).strip()
    kind = re.sub(r"\w+$", "", words).strip() if not words.endswith("*") else words
    if kind.startswith("enum"):
        return ctypes.c_int
    stars = kind.count("*")
    base = kind.replace("*", "").strip()
    handle = base in ("void", "cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t", "cudaDeviceProp")
    if handle:
        depth = stars + (base not in ("void", "cudaDeviceProp"))
        return ctypes.c_void_p if depth == 1 else ctypes.POINTER(ctypes.c_void_p)
    plain = {**CTYPES, "float": ctypes.c_float}[base]
    return ctypes.POINTER(plain) if stars else plain


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_the_header_s(name: str) -> None:
    header = genuine("*/include/cuda_runtime_api.h").read_text(encoding="utf-8", errors="replace")
    found = re.search(rf"CUDARTAPI {name}\(([^;]*)\);", header)
    assert found, f"CUDA has no {name}"
    declared = [part for part in found.group(1).split(",") if part.strip() != "void"]
    assert tuple(map(ctype_of, declared)) == SIGNATURES[name]


def test_the_genuine_library_loads_and_says_when_there_is_no_gpu() -> None:
    cuda = Cuda(str(genuine("*/lib/libcudart.so.1*")))
    try:
        assert re.fullmatch(r"\d+\.\d", cuda.device().sm)
    except DeviceMissingError as error:
        answer = error
    else:
        return
    assert "no usable GPU" in answer.message
    assert "nvidia-smi" in answer.hint


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_module.LIBRARY_VARIABLE, "/nowhere/libcudart.so")
    with pytest.raises(DeviceMissingError, match="no CUDA runtime") as caught:
        Cuda()
    assert cuda_module.LIBRARY_VARIABLE in caught.value.hint


@pytest.mark.parametrize(
    ("proc", "tegra", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n",
            "",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "", "540.4.0"),
        ("", "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64\n", "L4T 36.4.0"),
        ("", "", ""),
    ],
)
def test_the_driver_s_version(monkeypatch: pytest.MonkeyPatch, proc: str, tegra: str, version: str) -> None:
    texts = {"/proc/driver/nvidia/version": proc, "/etc/nv_tegra_release": tegra}
    monkeypatch.setattr(cuda_module, "_read", texts.__getitem__)
    assert cuda_module.driver_version() == version


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Cuda]:
    """A CUDA runtime in host memory."""
    try:
        library = wheels.host_cudart(tmp_path)
    except wheels.UnavailableError as reason:
        pytest.skip(str(reason))
    cuda = Cuda(str(library))
    yield cuda
    assert cuda._library.standInLive() == 0, "something was not given back"


def round_trip(cuda: Cuda) -> None:
    """There and back through device memory, by plain copies and by a graph, with times."""
    stream, first, last = Stream(cuda), Event(cuda), Event(cuda)
    source, target = (PinnedBuffer(cuda, 1000, np.dtype(np.float32)) for _ in range(2))
    device = DeviceBuffer(cuda, source.array.nbytes)
    source.array[:] = np.arange(1000)
    first.record(stream)
    stream.upload(device, source, device.nbytes)
    stream.download(target, device, device.nbytes)
    last.record(stream)
    last.synchronize()
    np.testing.assert_array_equal(target.array, np.arange(1000))
    assert last.since(first) >= 0

    stream.begin_capture()
    stream.upload(device, source, device.nbytes)
    stream.download(target, device, device.nbytes)
    graph = stream.end_capture()
    source.array += 1
    np.testing.assert_array_equal(target.array, np.arange(1000), "a capture copies nothing")
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array, np.arange(1, 1001))
    for resource in (graph, device, source, target, first, last, stream):
        resource.close()
        resource.close()


def test_copies_events_and_graphs_in_host_memory(host: Cuda) -> None:
    round_trip(host)
    device = host.device()
    assert (device.name, device.sm, device.integrated) == ("stand-in for a GPU", "8.7", True)
    assert device.driver.endswith("CUDA 12.6")
    assert host.memory() == (1 << 30, 2 << 30)


def test_failures_have_their_own_kind(host: Cuda) -> None:
    for code, kind in ((2, OutOfMemoryError), (35, DeviceMissingError), (100, DeviceMissingError), (700, DeviceError)):
        host._library.standInFail(b"cudaMalloc", code)
        with pytest.raises(kind) as caught:
            DeviceBuffer(host, 8)
        assert type(caught.value) is kind
        assert host._library.cudaGetLastError() == 0, "the error is not left for a later call"
    host._library.standInFail(b"", 0)
    with pytest.raises(DeviceMissingError, match="no GPU of number 3: 1 found"):
        host.device(3)


def test_a_capture_can_be_abandoned(host: Cuda) -> None:
    stream = Stream(host)
    stream.begin_capture()
    stream.abandon_capture()
    stream.synchronize()
    host._library.standInFail(b"cudaStreamEndCapture", 901)
    stream.begin_capture()
    with pytest.raises(DeviceError, match="901"):
        stream.end_capture()
    stream.abandon_capture()
    host._library.standInFail(b"", 0)
    stream.synchronize()
    stream.close()


@pytest.mark.gpu
def test_copies_events_and_graphs_on_a_gpu() -> None:
    try:
        cuda = Cuda()
        device = cuda.device()
    except DeviceMissingError as reason:
        pytest.skip(reason.message)
    assert device.memory > 1 << 30
    round_trip(cuda)
    with pytest.raises(OutOfMemoryError):
        DeviceBuffer(cuda, 1 << 50)
    round_trip(cuda)


def test_the_library_is_found_beside_pytorch() -> None:
    """In a process without the variable, where NVIDIA's wheel lies inside site-packages."""
    genuine("*/lib/libcudart.so.1*")
    environment = {key: value for key, value in os.environ.items() if key != cuda_module.LIBRARY_VARIABLE}
    code = "from iekd.deploy.device.cuda import Cuda; print(Cuda()._library._name)"
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "libcudart" in answer.stdout, answer.stderr
