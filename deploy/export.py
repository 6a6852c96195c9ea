"""From a network to one ONNX file that is enough to run it: weights, class names and preprocessing inside."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from iekd import __version__
from iekd.deploy.node_names import name_nodes
from iekd.deploy.openvino_format import is_openvino, read_entries
from iekd.deploy.quiet import quiet
from iekd.errors import InputError, VerificationError
from iekd.files import atomic_file
from iekd.models.preprocessing import Preprocessing

OPSET = 20
"""The newest that TensorRT 10.3 reads."""

INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class ModelMetadata:
    """What travels in the file beside the network."""

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing


def export_onnx(
    network: nn.Module, path: Path, *, preprocessing: Preprocessing, classes: Sequence[str], name: str
) -> Path:
    """Write ``network`` as ONNX with a dynamic batch, checked and simplified; the caller's network is left as it is.

    Args:
        network: an image classifier.
        path: of the file; appears only when it is whole.
        preprocessing: how images become the input; recorded in the file.
        classes: names, in the order of the logits; recorded in the file.
        name: of the architecture; recorded in the file.

    Raises:
        VerificationError: the exporter cannot express the network.
    """
    twin = copy.deepcopy(network).cpu().float().eval()
    images = torch.zeros(2, 3, preprocessing.size, preprocessing.size)
    try:
        with quiet():
            program = torch.onnx.export(
                twin,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        raise VerificationError(
            f"{name} cannot be exported to ONNX: {' '.join(str(error).split())[:300]}",
            "Add --debug for the whole story, or choose another model.",
        ) from error
    assert program is not None
    exported = program.model_proto
    name_nodes(exported)
    model = _simplified(exported, name)
    entries = {
        "name": name,
        "classes": json.dumps(list(classes)),
        "preprocessing": preprocessing.to_json(),
        "producer": f"iekd-compress {__version__}",
    }
    onnx.helper.set_model_props(model, entries)
    model.producer_name, model.producer_version = "iekd-compress", __version__
    onnx.checker.check_model(model, full_check=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def sketch_onnx(network: nn.Module, path: Path, size: int) -> None:
    """Write ``network`` for a first estimate of its latency: no metadata, nothing verified, never to be shipped.

    It is traced, which takes a second where :func:`export_onnx` takes ten to forty.  The graphs are alike but for the
    pooling before the classifier.  A network that cannot be traced is exported as it would ship.

    Args:
        network: an image classifier.
        path: of the file.
        size: height and width of its input, pixels.

    Raises:
        VerificationError: the network cannot be exported at all.
    """
    import onnxslim

    twin = copy.deepcopy(network).cpu().float().eval()
    try:
        with quiet():
            torch.onnx.export(
                twin,
                (torch.zeros(2, 3, size, size),),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
            onnx.save(onnxslim.slim(str(path)), path)
    except RuntimeError:  # what the tracer and its exporter raise, OnnxExporterError included
        export_onnx(network, path, preprocessing=Preprocessing(size=size), classes=(), name=type(network).__name__)


def read_metadata(path: Path) -> ModelMetadata:
    """What :func:`export_onnx` recorded in the file, and quantisation passed on, to OpenVINO's own format too.

    Raises:
        InputError: neither ONNX nor OpenVINO's format, or without our metadata.
        EnvironmentMissingError: an .xml, and OpenVINO is not installed.
    """
    entries = read_entries(path) if is_openvino(path) else _onnx_entries(path)
    if not {"classes", "preprocessing"} <= entries.keys():
        raise InputError(
            f"{path} says nothing of its classes and preprocessing.", "Give a file that iekd-compress exported."
        )
    return ModelMetadata(
        entries.get("name", path.stem),
        tuple(json.loads(entries["classes"])),
        Preprocessing.from_json(entries["preprocessing"]),
    )


def _onnx_entries(path: Path) -> dict[str, str]:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise InputError(f"no ONNX file at {path}.", "Check the path.") from error
    except Exception as error:
        raise InputError(f"{path} is not an ONNX file.", "Give a file that iekd-compress exported.") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _simplified(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model as onnxslim simplifies it.

    Raises:
        VerificationError: the network fixes the number of images, or the simplifier changed the interface, which would
            break every user of the file.
    """
    import onnxslim

    if not _takes_any_batch(model):
        raise VerificationError(
            f"{name} was exported for one number of images alone.",
            "Its forward may ask len(images), which fixes it; images.shape[0] leaves it open.",
        )
    with quiet():
        slim = onnxslim.slim(copy.deepcopy(model))
    names = [entry.name for entry in (*slim.graph.input, *slim.graph.output)]
    if not _takes_any_batch(slim) or names != [INPUT, OUTPUT]:
        raise VerificationError(f"simplifying {name} lost its dynamic batch or its names.", "Please report this.")
    result: onnx.ModelProto = slim
    return result


def _takes_any_batch(model: onnx.ModelProto) -> bool:
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    return str(batch.WhichOneof("value")) == "dim_param"


def as_batch(images: Sequence[np.ndarray]) -> np.ndarray:
    """Preprocessed images (3, H, W) as one float32 batch."""
    return np.ascontiguousarray(np.stack(images), dtype=np.float32)
