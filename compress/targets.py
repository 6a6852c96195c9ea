"""A target owns the choices that depend on it: backend, precisions and how to reach them, widths.  No heavy import.

Nothing else in the code asks which device it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """What a student is made for.

    Attributes:
        name: as the user writes it.
        summary: a few words.
        backend: what measures the files on this machine.
        schemes: beside fp32, each precision that the target has, and the quantisation scheme that reaches it.
        round_to: multiples that pruned widths should have.
        on_board: the files are for another machine: this one measures accuracy, and float32 latency for comparison.
    """

    name: str
    summary: str
    backend: str
    schemes: Mapping[str, str] = field(default_factory=dict)
    round_to: int = 8
    on_board: bool = False

    @property
    def builds_engines(self) -> bool:
        """Does TensorRT build an engine of the student's files, here or on the board?"""
        return self.on_board or self.runs_engines

    @property
    def runs_engines(self) -> bool:
        """Does this machine build an engine of each file, and measure that?"""
        return self.backend == "tensorrt"

    @property
    def checks_exports(self) -> str:
        """The backend in which an exported file is held against its network.

        Where an engine is what runs, that is ONNX Runtime, in float32 throughout: a file is right or wrong before
        minutes are spent on its engine, and an engine in TF32 need not come within what export allows.
        """
        return "onnxruntime" if self.runs_engines else self.backend


_AVX512 = 16
"""Channels that both runtimes compute at once with AVX-512; a part of a block costs as much as a whole one."""
_TENSORRT = {"fp16": "fp16", "bf16": "bf16", "int8": "int8-tensorrt", "fp8": "fp8-tensorrt"}
_ORIN = {"fp16": "fp16", "bf16": "bf16", "int8": "int8-tensorrt"}

TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "ONNX Runtime on a CPU", "onnxruntime", {"int8": "int8-x86-onnxruntime"}, round_to=_AVX512),
        Target("openvino", "OpenVINO on an x86 CPU", "openvino", {"int8": "int8-openvino"}, round_to=_AVX512),
        Target("cuda", "ONNX Runtime on an NVIDIA GPU", "onnxruntime-cuda", {"fp16": "fp16"}),
        Target("tensorrt", "TensorRT on this machine's GPU", "tensorrt", _TENSORRT, round_to=16),
        Target("jetson-orin", "a bundle for a Jetson Orin", "onnxruntime", _ORIN, round_to=16, on_board=True),
        Target("jetson-thor", "a bundle for a Jetson Thor", "onnxruntime", _TENSORRT, round_to=16, on_board=True),
    )
}
