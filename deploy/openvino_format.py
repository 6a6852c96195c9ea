"""OpenVINO's own format: an .xml with the network, and beside it a .bin of the same name with the weights.

NNCF's files have it where they win (docs/decisions/quantisers.md).  What our ONNX files hold as metadata stands in the
runtime information of the .xml, under :data:`SECTION`.  OpenVINO alone runs such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iekd.errors import EnvironmentMissingError, InputError

SUFFIX = ".xml"
SECTION = "iekd"
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
INSTALL = "pip install 'iekd-compress[openvino]'"


def is_openvino(path: Path) -> bool:
    """Is the file, by its name, in OpenVINO's own format?"""
    return path.suffix.lower() == SUFFIX


def weights_beside(path: Path) -> Path:
    """The .bin of an .xml.

    Raises:
        InputError: one of the two is missing.
    """
    weights = path.with_suffix(".bin")
    if not path.is_file():
        raise InputError(f"no file at {path}.", "Check the path.")
    if not weights.is_file():
        raise InputError(f"{weights}, the weights of {path.name}, is missing.", "Keep the two files in one folder.")
    return weights


def refuse_openvino(path: Path, who: str, instead: str) -> None:
    """Raise InputError where ``path`` is in OpenVINO's own format.

    Args:
        path: what was given.
        who: what reads no such file, as the subject of the sentence.
        instead: what to do next.
    """
    if is_openvino(path):
        raise InputError(f"{path} is in OpenVINO's own format, which {who} does not read.", instead)


def has_quantized_layer(path: Path) -> bool:
    """Does any convolution or matrix product of an .xml file read quantised values?"""
    import openvino

    return any(
        operator.get_type_name() in LAYERS
        and any(value.get_node().get_type_name() == "FakeQuantize" for value in operator.input_values())
        for operator in openvino.Core().read_model(path).get_ops()
    )


def write_entries(model: Any, entries: Mapping[str, str]) -> None:
    """Put our metadata into an OpenVINO model that is going to be saved."""
    for key, value in entries.items():
        model.set_rt_info(value, [SECTION, key])


def read_entries(path: Path) -> dict[str, str]:
    """What :func:`write_entries` put into an .xml file; empty if nothing.

    Raises:
        InputError: missing, without its weights, or damaged.
        EnvironmentMissingError: OpenVINO is not installed.
    """
    weights_beside(path)
    try:
        import openvino
    except ImportError as error:
        raise EnvironmentMissingError(f"{path} needs OpenVINO, which is not installed.", INSTALL) from error
    try:
        model = openvino.Core().read_model(path)
    except Exception as error:
        raise InputError(f"{path} is not a file in OpenVINO's format.", "Quantise the student again.") from error
    if not model.has_rt_info([SECTION]):
        return {}
    return {str(key): str(value) for key, value in model.get_rt_info([SECTION]).value.items()}
