"""What the stand-ins answer: a builder that works through its phases, and an engine that computes means."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import stand_in
import tensorrt_bindings as trt

CLASSES, SHAPE = 5, (3, 4, 4)


class Workshop:
    """Scripts the stand-ins of a build, and remembers what the build asked for."""

    def __init__(self, *, shape: tuple[int, ...] = (-1, *SHAPE), dla: int = 0) -> None:
        self.shape = shape
        self.builds = 0
        self.config: Any = None
        self.fail: Callable[[Any], None] | None = None
        self.script: stand_in.Script = {
            ("INetworkDefinition", "num_inputs"): 1,
            ("INetworkDefinition", "num_outputs"): 1,
            ("ITensor", "shape"): trt.Dims(shape),
            ("ITensor", "name"): "images",
            ("IBuilderConfig", "add_optimization_profile"): lambda profile: 0,
            ("Builder", "num_DLA_cores"): dla,
            ("Builder", "build_serialized_network"): self.build,
            ("EngineInspector", "get_engine_information"): lambda style: '{"Layers": ["conv1"]}',
        }
        self.bindings = stand_in.Bindings(trt, self.script)

    def build(self, network: Any, config: Any, *_: Any) -> Any:
        """What TensorRT does inside the build: phases and steps, told to the monitor from this thread."""
        self.builds += 1
        self.config = config.stand_in_values
        monitor = self.config["progress_monitor"]
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            monitor.phase_start("Tactics", "Building Engine", 4)
            for tactic in range(4):
                time.sleep(0.03)
                if not monitor.step_complete("Tactics", tactic):
                    return None
            monitor.phase_finish("Tactics")
            monitor.step_complete("Building Engine", step)
        monitor.phase_finish("Building Engine")
        if self.fail:
            self.fail(network)
            return None
        return stand_in.StandIn(self.bindings, trt.IHostMemory)

    def called(self, owner: str, name: str) -> list[Any]:
        return [arguments for kind, method, arguments in self.bindings.calls if (kind, method) == (owner, name)]


class Device:
    """Scripts the stand-ins of an engine whose logit k is (k + 1) times the mean of an image."""

    def __init__(self, most: int, output: Any = None) -> None:
        self.cudart = ctypes.CDLL(os.environ["IEKD_CUDART"])
        self.cudart.standInEnqueue.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.executions = self.enqueued = 0
        self.half = output == trt.DataType.HALF
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._compute)
        smallest, usual, largest = (trt.Dims((n, *SHAPE)) for n in (1, 1, most))
        modes = {"images": trt.TensorIOMode.INPUT, "logits": trt.TensorIOMode.OUTPUT}
        self.script: stand_in.Script = {
            ("ICudaEngine", "num_io_tensors"): 2,
            ("ICudaEngine", "get_tensor_name"): lambda index: ("images", "logits")[index],
            ("ICudaEngine", "get_tensor_mode"): lambda name: modes[name],
            ("ICudaEngine", "get_tensor_shape"): lambda name: trt.Dims(
                (-1, *(SHAPE if name == "images" else (CLASSES,)))
            ),
            ("ICudaEngine", "get_tensor_dtype"): lambda name: (
                (output or trt.float32) if name == "logits" else trt.float32
            ),
            ("ICudaEngine", "get_tensor_profile_shape"): lambda name, index: [smallest, usual, largest],
            ("IExecutionContext", "set_tensor_address"): self._address,
            ("IExecutionContext", "set_input_shape"): self._shape,
            ("IExecutionContext", "execute_async_v3"): self._execute,
        }

    def _address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def _shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return True

    def _execute(self, stream: int) -> bool:
        self.enqueued += 1
        self.cudart.standInEnqueue(stream, self._work, None)
        return True

    def _compute(self, _argument: Any) -> None:
        self.executions += 1
        count = self.batch * int(np.prod(SHAPE))
        images = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["images"]))
        means = images.reshape(self.batch, -1).mean(axis=1, keepdims=True)
        logits = (means * np.arange(1, CLASSES + 1)).astype(np.float16 if self.half else np.float32)
        ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)

    def live(self) -> int:
        """Pieces of CUDA's memory, streams, events and graphs that nobody gave back."""
        return int(self.cudart.standInLive())
