"""The part of the CUDA runtime that inference needs, through ctypes: a JetPack board has no pycuda and no cuda-python.

Source of the signatures: NVIDIA, CUDA Runtime API (``cuda_runtime_api.h``), the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DeviceError, DeviceMissingError, OutOfMemoryError

LIBRARY_VARIABLE = "IEKD_CUDART"
"""Environment variable that names the runtime library, before any other place is searched."""

_OUT = POINTER(c_void_p)
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaGetLastError": (),
    "cudaGetErrorString": (c_int,),
    "cudaMalloc": (_OUT, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMallocHost": (_OUT, c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (_OUT, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaEventCreateWithFlags": (_OUT, c_uint),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, _OUT),
    "cudaGraphInstantiateWithFlags": (_OUT, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
}
"""Arguments of every function used; all return ``cudaError_t``, but for ``cudaGetErrorString``."""

_ATTRIBUTE_INTEGRATED, _ATTRIBUTE_SM_MAJOR, _ATTRIBUTE_SM_MINOR = 18, 75, 76
_OUT_OF_MEMORY = 2
_NO_DEVICE = {35: "the driver is older than the CUDA runtime, or absent", 100: "no CUDA device is visible"}
NO_GPU_HINT = (
    "Check `nvidia-smi`, or `cat /etc/nv_tegra_release` on a Jetson; a container must be started with the GPU."
)
_PROPERTIES_BYTES = 16384
"""More than ``cudaDeviceProp`` has in any version (about 1 KiB); only its first member, the name, is read."""


@dataclass(frozen=True)
class Device:
    """What a GPU is, as far as an engine depends on it."""

    name: str
    sm: str
    """Compute capability, such as ``8.7``."""
    driver: str
    """Version of the driver, or of L4T on a Jetson, and the CUDA version that it serves."""
    runtime: str
    """Version of the CUDA runtime library."""
    memory: int
    """Bytes."""
    integrated: bool
    """True where GPU and CPU share their memory, as on a Jetson."""


class Cuda:
    """The CUDA runtime.

    Args:
        library: path or name of ``libcudart``; searched for when None.

    Raises:
        DeviceMissingError: no such library.
    """

    def __init__(self, library: str | None = None) -> None:
        self._library = _load(library)
        for name, arguments in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = c_int
        self._library.cudaGetErrorString.restype = c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Call a runtime function.

        Raises:
            OutOfMemoryError: the device's memory is full.
            DeviceMissingError: there is no device, or no driver for it.
            DeviceError: any other failure, by CUDA's own name for it.
        """
        code = self.code_of(name, *arguments)
        if code:
            raise self._error(name, code)

    def code_of(self, name: str, *arguments: Any) -> int:
        """Call a runtime function, and return its error code; for where a failure is expected."""
        code = int(getattr(self._library, name)(*arguments))
        if code:
            self._library.cudaGetLastError()  # an error that is not sticky must not be reported again by a later call
        return code

    def _error(self, name: str, code: int) -> DeviceError:
        text = self._library.cudaGetErrorString(code).decode(errors="replace")
        if code == _OUT_OF_MEMORY:
            return OutOfMemoryError(
                f"the GPU is out of memory ({name}).",
                "Use a smaller batch, or end other processes that hold GPU memory.",
            )
        if code in _NO_DEVICE:
            return DeviceMissingError(
                f"no usable GPU: {_NO_DEVICE[code]} ({name}: {text}).",
                NO_GPU_HINT,
            )
        return DeviceError(f"CUDA failed in {name}: {text} (error {code}).", "See the driver's log with `dmesg`.")

    def integer(self, name: str, *arguments: Any) -> int:
        """What a runtime function writes to its first argument, an ``int``."""
        value = c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def handle(self, name: str, *arguments: Any) -> int:
        """What a runtime function writes to its first argument, an opaque pointer."""
        value = c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def device(self, index: int = 0) -> Device:
        """The GPU of that number.

        Raises:
            DeviceMissingError: there is none.
        """
        count = self.integer("cudaGetDeviceCount")
        if index >= count:
            raise DeviceMissingError(f"no GPU of number {index}: {count} found.", "Check CUDA_VISIBLE_DEVICES.")
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", properties, index)
        major = self.integer("cudaDeviceGetAttribute", _ATTRIBUTE_SM_MAJOR, index)
        minor = self.integer("cudaDeviceGetAttribute", _ATTRIBUTE_SM_MINOR, index)
        served = _dotted(self.integer("cudaDriverGetVersion"))
        return Device(
            name=properties.value.decode(errors="replace"),
            sm=f"{major}.{minor}",
            driver=" ".join(part for part in (driver_version(), f"CUDA {served}") if part),
            runtime=_dotted(self.integer("cudaRuntimeGetVersion")),
            memory=self.memory()[1],
            integrated=bool(self.integer("cudaDeviceGetAttribute", _ATTRIBUTE_INTEGRATED, index)),
        )

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of device memory."""
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


def driver_version() -> str:
    """Version of NVIDIA's kernel driver, or the L4T release of a Jetson; empty where neither can be read."""
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", _read("/proc/driver/nvidia/version"))
    if found:
        return found.group(1)
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", _read("/etc/nv_tegra_release"))
    return f"L4T {release.group(1)}.{release.group(2)}" if release else ""


def _load(library: str | None) -> ctypes.CDLL:
    for candidate in [library] if library else _candidates():
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise DeviceMissingError(
        f"no CUDA runtime: {library or 'libcudart.so'} cannot be loaded.",
        f"Install CUDA (`sudo apt-get install nvidia-jetpack` on a Jetson), or set {LIBRARY_VARIABLE} to the library.",
    )


def _candidates() -> Iterator[str]:
    """Where the runtime library may be; NVIDIA's own wheels hide it inside site-packages."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        yield named
        return
    found = ctypes.util.find_library("cudart")
    if found:
        yield found
    yield from ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
    yield from map(str, sorted(Path("/usr/local/cuda/lib64").glob("libcudart.so.*")))
    for folder in sys.path:
        for pattern in ("nvidia/cu1*/lib/libcudart.so.*", "nvidia/cuda_runtime/lib/libcudart.so.*"):
            yield from map(str, sorted(Path(folder).glob(pattern), reverse=True))


def _dotted(version: int) -> str:
    """CUDA's numbers, such as 12060, as people write them."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
