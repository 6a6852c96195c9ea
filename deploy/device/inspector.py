"""What an engine consists of, out of the engine inspector's JSON: layers, precisions, reformats, DLA or GPU.

Layouts: NVIDIA, TensorRT documentation, "Engine Inspector" (10.x: each tensor has a ``Format/Datatype``) and "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x" (that is split into ``Format`` and ``DataType``).  An engine that was
built without detailed profiling gives the layers' names only; one with an open batch gives no tensor formats.  What is
not told is None here, never guessed; what is no inspector's answer at all is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DeviceInputError

DLA, GPU = "DLA", "GPU"
_TYPE = re.compile(
    r"\b(float(?:8|16|32)?|half|bfloat16|fp8|fp16|bf16|fp32|u?int8|int4|int32|int64|bool)\b", re.IGNORECASE
)
_SHORT = {
    "float": "fp32",
    "float32": "fp32",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
}
_TYPE_KEYS = ("Format/Datatype", "Format/DataType", "DataType", "Datatype", "Format")
_NAMED = 3
"""Layers that a line names at most."""


@dataclass(frozen=True)
class Layer:
    """One layer of the engine, which may stand for many nodes of the ONNX file; None is what the inspector left out."""

    name: str
    kind: str | None
    precision: str | None
    """Of the weights where it has any, else of the first tensor that tells: fp32, fp16, bf16, int8, fp8, ..."""
    device: str | None
    """``DLA`` or ``GPU``."""

    @property
    def is_reformat(self) -> bool:
        """Does it only bring a tensor into another layout or type?"""
        return self.kind == "Reformat" or self.name.startswith("Reformatting CopyNode")


def parse_layers(text: str) -> list[Layer]:
    """The layers in what ``get_engine_information`` gave as JSON.

    Raises:
        DeviceInputError: it is not that: cut off, damaged, or of another form.
    """
    try:
        value = json.loads(text, strict=False)  # names hold raw separators, control characters 0x1E and 0x1F
    except (ValueError, RecursionError) as error:
        raise DeviceInputError(f"the engine inspector's answer is not JSON ({error}).", _AGAIN) from error
    entries = value.get("Layers") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise DeviceInputError("the engine inspector's answer lists no layers.", _AGAIN)
    return [_layer(entry, number) for number, entry in enumerate(entries)]


def summarize(layers: Iterable[Layer]) -> dict[str, Any]:
    """Counts, ready for JSON.

    Returns:
        ``layers`` that compute, ``reformats``; computing layers by ``types``, ``precisions`` and ``devices``, each
        without those that do not tell; ``beside_dla``: names of the GPU's, where a DLA has others.
    """
    every = list(layers)
    computing = [layer for layer in every if not layer.is_reformat]
    devices = Counter(layer.device for layer in computing if layer.device)
    return {
        "layers": len(computing),
        "reformats": len(every) - len(computing),
        "types": dict(Counter(layer.kind for layer in computing if layer.kind)),
        "precisions": dict(Counter(layer.precision for layer in computing if layer.precision)),
        "devices": dict(devices),
        "beside_dla": [layer.name for layer in computing if layer.device == GPU] if devices[DLA] else [],
    }


def inspect_engine(engine: Path) -> dict[str, Any]:
    """The summary of the layers that lie beside an engine, or ``{"error": ...}``: it runs without them."""
    path = engine.with_suffix(".layers.json")
    try:
        return summarize(parse_layers(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        return {"error": f"{path.name} cannot be read: {error}."}
    except DeviceInputError as error:
        return {"error": f"{path.name}: {error.message}"}


def describe(summary: dict[str, Any], *, dla: bool = False) -> str:
    """A summary in one line.

    Args:
        summary: of :func:`inspect_engine`.
        dla: the engine was built for a DLA: say what really runs there.
    """
    if "error" in summary:
        return f"layers unknown: {summary['error']}"
    told = [f"{count} {name}" for name, count in summary["precisions"].items()]
    if rest := summary["layers"] - sum(summary["precisions"].values()):
        told.append(f"{rest} of untold precision")
    line = f"{summary['layers']} layers ({', '.join(told) or 'none'}), reformats: {summary['reformats']}"
    return f"{line}; {_on_dla(summary)}" if dla else line


def _on_dla(summary: dict[str, Any]) -> str:
    if not summary["devices"]:
        return "which of them run on the DLA is not told"
    if not summary["devices"].get(DLA):
        return "none runs on the DLA: the GPU runs all of them"
    beside = summary["beside_dla"]
    names = ", ".join(beside[:_NAMED]) + (f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else "")
    return f"{summary['devices'][DLA]} on the DLA, {f'on the GPU {names}' if beside else 'none on the GPU'}"


_AGAIN = "Build the engine again."


def _layer(entry: Any, number: int) -> Layer:
    if isinstance(entry, str):
        return Layer(entry, None, None, None)
    if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
        raise DeviceInputError(f"layer {number} of the engine inspector's answer has no name.", _AGAIN)
    kind = entry.get("LayerType")
    if not isinstance(kind, str):
        return Layer(entry["Name"], None, _precision(entry), None)
    return Layer(entry["Name"], kind, _precision(entry), DLA if kind.upper() == DLA else GPU)


def _precision(entry: dict[str, Any]) -> str | None:
    weights = entry.get("Weights")
    told = [weights.get("Type")] if isinstance(weights, dict) else []
    for side in ("Inputs", "Outputs"):
        tensors = entry.get(side)
        for tensor in tensors if isinstance(tensors, list) else []:
            told += [tensor.get(key) for key in _TYPE_KEYS] if isinstance(tensor, dict) else []
    found = next((match for text in told if isinstance(text, str) and (match := _TYPE.search(text))), None)
    return _SHORT.get(found[1].lower(), found[1].lower()) if found else None
