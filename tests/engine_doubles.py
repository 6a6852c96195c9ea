"""TensorRT as far as the host's code sees it: a plan is the ONNX file itself, and ONNX Runtime answers for it.

Cache, manifests, watch, copies and the backend are the genuine ones; nothing here says anything of TensorRT.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from iekd.deploy import engine as host_engine
from iekd.deploy.backends import Array
from iekd.deploy.backends import tensorrt as backend
from iekd.deploy.device import engine as device_engine
from iekd.deploy.device.engine_cache import Built, Machine, check_engine
from iekd.deploy.device.engine_settings import BuildSettings
from iekd.deploy.device.engine_watch import Watch
from iekd.deploy.device.errors import DeviceError, DeviceInputError
from iekd.deploy.precision import emulated

LAYERS: dict[str, Any] = {
    "Layers": [
        {"Name": "stem", "LayerType": "CaskConvolution", "Weights": {"Type": "Half", "Count": 8}},
        {"Name": "head", "LayerType": "gemm", "Weights": {"Type": "Float", "Count": 8}},
        {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat"},
    ]
}


class Workshop:
    """A machine that builds engines; ``refuse`` holds what it raises for the file of a name."""

    def __init__(self) -> None:
        self.machine = Machine("10.3.0", "Orin", "8.7", "a driver", "Linux aarch64")
        self.refuse: dict[str, DeviceError] = {}
        self.built: list[str] = []
        self.settings: list[BuildSettings] = []
        self.opened: list[Path] = []
        self.layers: dict[str, Any] = LAYERS

    def builder(self, file: Path, settings: BuildSettings, timing: bytes, watch: Watch) -> Built:
        """As :data:`iekd.deploy.device.engine.Builder`."""
        watch.lines.append(f"[W] looking at {file.name}")
        watch.begin("Tactics", None, 2)
        watch.step("Tactics", 0)
        time.sleep(0.15)  # longer than the waiting thread looks away
        if file.stem in self.refuse:
            raise self.refuse[file.stem]
        self.built.append(file.stem)
        self.settings.append(settings)
        return Built(file.read_bytes(), layers=json.dumps(self.layers), timing_cache=b"timings")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put this workshop in TensorRT's place."""
        for module in (device_engine, host_engine, backend):  # each has the name of its own
            patch.setattr(module, "this_machine", lambda: self.machine)
        patch.setattr(device_engine, "_tensorrt_builder", lambda: self.builder)
        patch.setattr(backend, "EngineSession", self.open)

    def open(self, path: Path, *, cuda_graph: bool = True) -> Session:
        """As the device's session: refuses what its manifest does not allow here."""
        manifest = check_engine(path, self.machine)
        self.opened.append(path)
        return Session(path, tuple(manifest.identity.options["batch"]))

    def update(self, tensorrt: str) -> None:
        """Another TensorRT is installed."""
        self.machine = dataclasses.replace(self.machine, tensorrt=tensorrt)


class Session:
    """An engine that answers as its ONNX file does."""

    def __init__(self, path: Path, batch: tuple[int, ...]) -> None:
        model = onnx.load_from_string(path.read_bytes())
        if any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in model.graph.initializer):
            model = emulated(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # see ReferenceSession
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.input_shape = tuple(self._session.get_inputs()[0].shape[1:])
        self.least, _, self.most = batch

    def run(self, images: Array) -> Array:
        if not self.least <= len(images) <= self.most:
            raise DeviceInputError(f"the engine takes {self.least} to {self.most} images, not {len(images)}.")
        logits: Array = self._session.run(None, {self._session.get_inputs()[0].name: images})[0]
        return logits

    def timed_run(self, images: Array) -> tuple[Array, dict[str, float]]:
        start = time.perf_counter()
        logits = self.run(images)
        return logits, {"host": (time.perf_counter() - start) * 1e3}

    def describe(self) -> dict[str, str]:
        return {"backend": "a double", "cuda graph": "captured"}

    def close(self) -> None: ...
