"""One explanation out of a log.  The lines are as users reported them, in the threads named."""

# ruff: noqa: E501 - recorded lines stay whole

from __future__ import annotations

import pytest

from iekd.deploy.device.errors import (
    BuildError,
    DeviceError,
    DeviceInputError,
    DeviceMissingError,
    OutOfMemoryError,
)
from iekd.deploy.device.explain import RefusedNode, explain

LOGS: dict[str, tuple[str, type[DeviceError], str]] = {
    "operator, NVIDIA/TensorRT#1775": (
        "[E] 3: getPluginCreator could not find plugin: Round version: 1\n"
        '[E] ModelImporter.cpp:720: While parsing node number 12 [If -> "Preprocessor/ResizeToRange/cond:0"]:\n'
        "[E] ModelImporter.cpp:721: --- Begin node ---\n"
        '[E] ModelImporter.cpp:722: input: "Preprocessor/ResizeToRange/Less:0"\n'
        'output: "Preprocessor/ResizeToRange/cond:0"\n'
        'name: "Preprocessor/ResizeToRange/cond"\n'
        'op_type: "If"\n',
        DeviceInputError,
        "operator If: Preprocessor/ResizeToRange/cond (If).",
    ),
    "operator, TensorRT 10": (
        "[E] In node 5 with name: /head/Det and operator: NonMaxSuppression (checkFallbackPluginImporter): "
        'INVALID_NODE: creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
        DeviceInputError,
        "operator NonMaxSuppression: /head/Det (NonMaxSuppression).",
    ),
    "operator, by its code": (
        "[E] In node 5 with name: /grid and operator: GridSample (importGridSample): UNSUPPORTED_NODE: Assertion failed: "
        "inputRank == 4: only 4-D inputs are supported",
        DeviceInputError,
        "does not take the operator GridSample: /grid (GridSample).  TensorRT says: Assertion failed",
    ),
    "operator, by its number": (
        '[E] ModelImporter.cpp:720: While parsing node number 12 [Loop -> "end"]:\n'
        "[E] ModelImporter.cpp:726: ERROR: builtin_op_importers.cpp:2420 In function importLoop:\n"
        "[8] Assertion failed: the body has scan outputs",
        DeviceInputError,
        "does not take the operator Loop: end (Loop).  TensorRT says: Assertion failed: the body",
    ),
    "types at a node": (
        "[E] In node 3 with name: /add/Add and operator: Add (parseNode): INVALID_NODE: Invalid Node - /add/Add\n"
        "[E] ITensor::getDimensions: Error Code 4: API Usage Error (/add/Add: IElementWiseLayer must have same input types. "
        "But they are of types Float and Half.)",
        DeviceInputError,
        "mixes number types",
    ),
    "types that an operator has not": (
        "[E] In node 3 with name: /conv/Conv and operator: Conv (importConv): UNSUPPORTED_NODE_DATATYPE: Assertion failed: "
        "kernel is INT32",
        DeviceInputError,
        "TensorRT refuses the node /conv/Conv (Conv): Assertion failed: kernel is INT32",
    ),
    "memory at a node": (
        "[E] In node 0 with name: /conv/Conv and operator: Conv (importConv): MEM_ALLOC_FAILED: Assertion failed: weights",
        OutOfMemoryError,
        "the memory did not suffice",
    ),
    "memory at a node, by its number": (
        '[E] ModelImporter.cpp:720: While parsing node number 0 [Conv -> "a"]:\n'
        "[E] ModelImporter.cpp:726: ERROR: builtin_op_importers.cpp:420 In function importConv:\n[2] Assertion failed: w",
        OutOfMemoryError,
        "the memory did not suffice",
    ),
    "a bad value at a node": (
        "[E] In node 7 with name: /fc/Gemm and operator: Gemm (importGemm): INVALID_VALUE: Assertion failed: rank == 2",
        DeviceInputError,
        "TensorRT refuses the node /fc/Gemm (Gemm): Assertion failed: rank == 2",
    ),
    "a bad node, by its number": (
        '[E] ModelImporter.cpp:720: While parsing node number 7 [Pad -> "p"]:\n'
        "[E] ModelImporter.cpp:726: ERROR: ModelImporter.cpp:180 In function parseGraph:\n[6] Invalid Node - Pad_14",
        DeviceInputError,
        "TensorRT refuses the node p (Pad): Invalid Node - Pad_14",
    ),
    "memory, NVIDIA/TensorRT#4258": (
        "[E] Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)\n"
        "[W] Requested amount of GPU memory (15485030400 bytes) could not be allocated. There may not be enough free memory "
        "for allocation to succeed.\n"
        "[E] Error[9]: Error Code: 9: Skipping tactic 0x0000000000000000 due to exception [tunable_graph.cpp:create:117] "
        "autotuning: User allocator error allocating 15485030400-byte buffer\n"
        "[E] Error[10]: IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation "
        "for node {ForeignNode[/1/Constant_36_output_0.../1/Slice_4]}.)",
        OutOfMemoryError,
        "engine at {ForeignNode[/1/Constant_36_output_0.../1/Slice_4]} (it asked for 14768 MiB).",
    ),
    "memory on a Jetson, open-mmlab/mmdeploy#1059": (
        "[W] Tactic Device request: 4364MB Available: 3788MB. Device memory is insufficient to use tactic.\n"
        "[W] Skipping tactic 8 due to insuficient memory on requested size of 4364 detected for tactic 60.\n"
        "[E] 10: [optimizer.cpp::computeCosts::3626] Error Code 10: Internal Error (Could not find any implementation for "
        "node MaxPool_5.)",
        OutOfMemoryError,
        "engine at MaxPool_5.",
    ),
    "no GPU, NVIDIA/TensorRT#2913": (
        "[W] Unable to determine GPU memory usage\n"
        "[W] CUDA initialization failure with error: 35. Please check your CUDA installation: "
        "http://docs.nvidia.com/cuda/cuda-installation-guide-linux/index.html",
        DeviceMissingError,
        "TensorRT found no usable GPU (CUDA error 35).",
    ),
    "no GPU, YOLOX#515": (
        "[F] [runtime.cpp::isCudaInstalledCorrectly::41] Error Code 6: Internal Error (CUDA initialization failure with "
        "error 2. Please check your CUDA installation)",
        DeviceMissingError,
        "TensorRT found no usable GPU (CUDA error 2).",
    ),
    "version, DeepStream-Yolo#77": (
        "[E] 6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.0.0 got "
        "8.0.1, please rebuild.",
        DeviceInputError,
        "built by TensorRT 8.0.1; this is 8.0.0.",
    ),
    "GPU, NVIDIA/TensorRT#2176": (
        "[E] 6: The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 7.5, please "
        "rebuild.\n[E] 4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization "
        "failed.)",
        DeviceInputError,
        "built for a GPU of SM 7.5; this one has 8.6.",
    ),
    "serialisation": (
        "[E] 1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization (Serialization assertion "
        "stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 232, Serialized "
        "Engine Version: 205)",
        DeviceInputError,
        "another version of TensorRT",
    ),
    "mixed types": (
        "[E] ITensor::getDimensions: Error Code 4: API Usage Error (/add/Add: IElementWiseLayer must have same input types. "
        "But they are of types Float and Half.)",
        DeviceInputError,
        "mixes number types",
    ),
    "no implementation": (
        "[E] 10: Error Code 10: Internal Error (Could not find any implementation for node /conv/Conv.)",
        BuildError,
        "no implementation for /conv/Conv",
    ),
    "anything else": (
        "[W] something harmless\n[E] 4: [network.cpp::validate::2633] Error Code 4: Internal Error (Network must have at "
        "least one output)",
        BuildError,
        "Network must have at least one output",
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_is_explained(name: str) -> None:
    log, kind, text = LOGS[name]
    error = explain(log.splitlines())
    assert type(error) is kind
    assert text in error.message
    assert error.hint


def test_too_little_memory_names_limits_and_swap() -> None:
    error = explain(["[E] Error Code 1: Cuda Runtime (out of memory)"])
    assert "--workspace MIB" in error.hint
    assert "sudo swapon /swapfile" in error.hint


def test_every_refused_operator_is_named() -> None:
    nodes = [
        RefusedNode(operator, f"/{operator}", "", "UNSUPPORTED_NODE") for operator in ("If", "Loop", "Loop", "Scan")
    ]
    message = explain([], nodes).message
    assert "operators If, Loop, Scan: /If (If); /Loop (Loop); /Loop (Loop) and 1 more." in message


def test_of_several_nodes_the_unsupported_ones_are_told() -> None:
    """The parser goes on after an operator that it does not have, and trips over what hangs on it."""
    nodes = [
        RefusedNode("Conv", "/conv", "Invalid Node - /conv", "INVALID_NODE"),
        RefusedNode("Strange", "/strange", 'creator && "Plugin not found"', "INVALID_NODE"),
    ]
    message = explain([], nodes).message
    assert "operator Strange: /strange (Strange)." in message
    assert "Conv" not in message


@pytest.mark.parametrize(
    ("code", "hint"), [("UNSUPPORTED_NODE_SHAPE", "another precision or network"), ("INVALID_NODE", "Export the model")]
)
def test_a_node_that_is_refused_for_itself_is_no_reason_to_drop_its_operator(code: str, hint: str) -> None:
    error = explain([], [RefusedNode("Conv", "/conv", "Assertion failed", code)])
    assert isinstance(error, DeviceInputError)
    assert "does not take the operator" not in error.message
    assert hint in error.hint


def test_an_empty_log_is_not_explained_away() -> None:
    error = explain([])
    assert isinstance(error, BuildError)
    assert "no reason" in error.message
