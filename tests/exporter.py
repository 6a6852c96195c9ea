"""torch.onnx lists all of its operators anew for each export, which is most of the time that a small one takes."""

from __future__ import annotations

import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry

_list_all = functools.cache(ONNXRegistry.from_torchlib)


def _listed(**version: int) -> ONNXRegistry:
    ready, registry = _list_all(**version), ONNXRegistry()
    registry._opset_version = ready.opset_version
    registry.functions = {name: list(entries) for name, entries in ready.functions.items()}
    return registry


def list_operators_once() -> None:
    """From now on, in this process and in those forked from it."""
    ONNXRegistry.from_torchlib = staticmethod(_listed)
    _list_all(opset_version=ONNXRegistry().opset_version)  # as the exporter asks
