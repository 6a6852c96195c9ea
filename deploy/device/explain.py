"""Why TensorRT did not build or load an engine: one explanation out of its log.

The patterns are TensorRT's own words, in versions 8 to 11; sources beside each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .cuda import NO_GPU_HINT
from .errors import BuildError, DeviceError, DeviceInputError, DeviceMissingError, OutOfMemoryError


@dataclass(frozen=True)
class RefusedNode:
    """A node of the ONNX file at which TensorRT's parser stopped."""

    operator: str
    name: str
    reason: str
    code: str
    """Name of the parser's ErrorCode; empty where it is not known."""

    @property
    def unsupported(self) -> bool:
        """Is it the operator that TensorRT does not have?  Not its types, shapes or values, memory or a bad file."""
        return self.code == "UNSUPPORTED_NODE" or bool(_NO_PLUGIN.search(self.reason))

    @property
    def place(self) -> str:
        """Its name and operator."""
        return f"{self.name or 'a node without a name'} ({self.operator})"


SWAP = (
    "Give the build more memory: `sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile "
    "&& sudo swapon /swapfile`, end other processes, and on a Jetson `sudo init 3` to stop the desktop."
)

# onnx-tensorrt prints the first form through IParserError, the second into the log (ModelImporter.cpp).
_NODE = re.compile(
    r"In node -?\d+(?: with name: (?P<name>.*?) and operator: (?P<operator>\S+))? "
    r"\(\w+\): (?P<code>\w+): (?P<reason>.*)"
)
_PARSING = re.compile(r"While parsing node number \d+ \[(?P<operator>\w+)(?: -> \"(?P<output>[^\"]*)\")?\]")
_NUMBERED = re.compile(r"In function \w+:\s*\[(?P<code>\d+)\] (?P<reason>.*)")
_NO_IMPORTER = re.compile(r"No importer registered for op: (?P<operator>\w+)")
# Operators without an importer are looked up as plugins; where that fails the code is INVALID_NODE.
_NO_PLUGIN = re.compile(r"plugin not found|could not find plugin", re.IGNORECASE)
_CODES = {"2": "MEM_ALLOC_FAILED", "8": "UNSUPPORTED_NODE"}
"""Of NvOnnxParser.h, those that are told apart here."""
_NAME = re.compile(r"^(?:.*?: )?name: \"(?P<name>[^\"]*)\"", re.MULTILINE)

# NVIDIA/TensorRT#2913, ultralytics and others: errors 35 and 100 of the CUDA runtime.
_NO_GPU = re.compile(r"CUDA initialization failure with error:? (?P<code>\d+)|no CUDA-capable device", re.IGNORECASE)
# NVIDIA/TensorRT#2176 (device), dusty-nv/jetson-inference#426 (version).
_OTHER_VERSION = re.compile(
    r"not compatible with this version of TensorRT, expecting library version (?P<here>[\d.]+) got (?P<there>[\d.]+)"
)
_OTHER_SERIALIZATION = re.compile(
    r"Version tag does not match\. Note: Current Version: (?P<here>\d+), .*?: (?P<there>\d+)"
)
_OTHER_DEVICE = re.compile(r"incompatible device, expecting compute (?P<here>[\d.]+) got compute (?P<there>[\d.]+)")
# NVIDIA/TensorRT#4258 (10.3), open-mmlab/mmdeploy#1059 (Jetson).
_MEMORY = re.compile(
    r"out of memory|insufficient memory|insuficient memory|memory is insufficient|OutOfMemory|bad_alloc"
    r"|could not be allocated|error allocating|MEM_ALLOC_FAILED",
    re.IGNORECASE,
)
_WANTED = re.compile(r"(?:GPU memory \(|Requested size was |error allocating )(?P<bytes>\d+)")
_NO_IMPLEMENTATION = re.compile(r"Could not find any implementation for node (?P<node>.+?)(?:\.\)|$)")
_TYPES = re.compile(r"must (?:have|be of) (?:the )?same (?:input )?types?.*|of types \w+ and \w+.*", re.IGNORECASE)
_DESERIALIZE = re.compile(r"deserializ", re.IGNORECASE)


def explain(lines: Sequence[str], nodes: Iterable[RefusedNode] = ()) -> DeviceError:
    """The error that a log stands for; the first that fits, from the most specific to the most general.

    Args:
        lines: of TensorRT's log, oldest first.
        nodes: that the parser refused, where it told.
    """
    text = "\n".join(lines)
    refused = [*nodes] or parsed_nodes(text)
    return (
        _unsupported([node for node in refused if node.unsupported])
        or _mismatch(text)
        or _no_gpu(text)
        or _out_of_memory("\n".join([text, *(node.code for node in refused)]))
        or _mixed_types(text)
        or _no_implementation(text)
        or _refused(refused)
        or _anything(lines)
    )


def parsed_nodes(text: str) -> list[RefusedNode]:
    """The refused nodes that a log names."""
    found = [
        RefusedNode(match["operator"], match["name"] or "", match["reason"], match["code"])
        for match in _NODE.finditer(text)
        if match["operator"]
    ]
    if found:
        return found
    plugin, parsing = _NO_PLUGIN.search(text), _PARSING.search(text)
    if parsing:
        name, numbered = _NAME.search(text, parsing.end()), _NUMBERED.search(text, parsing.end())
        return [
            RefusedNode(
                parsing["operator"],
                name["name"] if name else parsing["output"] or "",
                plugin.group() if plugin else numbered["reason"] if numbered else "",
                _CODES.get(numbered["code"], "") if numbered else "",
            )
        ]
    missing = _NO_IMPORTER.search(text)
    return [RefusedNode(missing["operator"], "", "Plugin not found", "")] if missing else []


def _unsupported(nodes: list[RefusedNode]) -> DeviceError | None:
    if not nodes:
        return None
    operators = ", ".join(dict.fromkeys(node.operator for node in nodes))
    where = "; ".join(node.place for node in nodes[:3])
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    reason = "" if _NO_PLUGIN.search(nodes[0].reason) else f"  TensorRT says: {nodes[0].reason}"
    plural = "s" if len({node.operator for node in nodes}) > 1 else ""
    return DeviceInputError(
        f"TensorRT does not take the operator{plural} {operators}: {where}{more}.{reason.rstrip()}",
        "Choose a network without it, or run the file with ONNX Runtime.",
    )


def _mismatch(text: str) -> DeviceError | None:
    rebuild = "Build it on this device, from the ONNX file."
    version = _OTHER_VERSION.search(text)
    if version:
        return DeviceInputError(
            f"the engine was built by TensorRT {version['there']}; this is {version['here']}.", rebuild
        )
    if _OTHER_SERIALIZATION.search(text):
        return DeviceInputError("the engine was built by another version of TensorRT.", rebuild)
    device = _OTHER_DEVICE.search(text)
    if device:
        return DeviceInputError(
            f"the engine was built for a GPU of SM {device['there']}; this one has {device['here']}.", rebuild
        )
    return None


def _no_gpu(text: str) -> DeviceError | None:
    found = _NO_GPU.search(text)
    if not found:
        return None
    detail = f" (CUDA error {found['code']})" if found["code"] else ""
    return DeviceMissingError(
        f"TensorRT found no usable GPU{detail}.",
        NO_GPU_HINT,
    )


def _out_of_memory(text: str) -> DeviceError | None:
    if not _MEMORY.search(text):
        return None
    wanted = [int(match["bytes"]) for match in _WANTED.finditer(text)]
    size = f" (it asked for {max(wanted) / 2**20:.0f} MiB)" if wanted else ""
    node = _NO_IMPLEMENTATION.search(text)
    where = f" at {node['node']}" if node else ""
    return OutOfMemoryError(
        f"the memory did not suffice to build the engine{where}{size}.",
        f"Lower the largest batch (on a board --max-batch 1, else --batch 1), --workspace MIB or --level.  {SWAP}",
    )


def _mixed_types(text: str) -> DeviceError | None:
    found = _TYPES.search(text)
    if not found:
        return None
    return DeviceInputError(
        f"the ONNX file mixes number types, which a strongly typed network does not allow: {found.group().strip()}",
        "Convert the precision again with iekd-compress: casts belong into the file.",
    )


def _no_implementation(text: str) -> DeviceError | None:
    node = _NO_IMPLEMENTATION.search(text)
    if not node:
        return None
    return BuildError(
        f"TensorRT has no implementation for {node['node']} within the limits given.",
        "Raise --workspace or --level, or try another precision.",
    )


def _refused(nodes: list[RefusedNode]) -> DeviceError | None:
    if not nodes:
        return None
    first = nodes[0]
    change = "Choose another precision or network" if first.code.startswith("UNSUPPORTED") else "Export the model again"
    return DeviceInputError(
        f"TensorRT refuses the node {first.place}: {first.reason.strip() or 'it gave no reason'}",
        f"{change}, or run the file with ONNX Runtime.",
    )


def _anything(lines: Sequence[str]) -> DeviceError:
    errors = [line for line in lines if line.startswith(("[E]", "[F]"))]
    last = errors[-1][3:].strip() if errors else "it gave no reason"
    text = "\n".join(errors)
    if _DESERIALIZE.search(text):
        return DeviceInputError(f"the engine cannot be read: {last}", "Build it again from the ONNX file.")
    return BuildError(f"TensorRT did not build the engine: {last}", "The whole log lies beside the engine cache.")
