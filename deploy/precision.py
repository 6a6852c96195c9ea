"""FP16 and BF16 as ONNX files: weights and arithmetic cast, input and output in float32, overflow looked for first.

Precision is a property of the file, so that every engine can be built strongly typed.  What cannot be represented on
real images stays in float32, by name.

A CPU is no proxy for such a file: ONNX Runtime computes FP16 nodes in float32 and has no BF16 convolution.
:func:`emulated` therefore rounds after every node, which is what a device does that accumulates in float32.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from iekd import __version__
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.graph_checks import LOW_PRECISION, load_float, require_tensorrt_graph
from iekd.errors import EnvironmentMissingError, InputError, VerificationError, unknown_name
from iekd.files import atomic_file

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LARGEST = {"fp16": 65504.0, "bf16": 3.3895314e38}
"""Largest finite value of each type."""
HEADROOM = 2.0
"""Images not seen may exceed those seen by this factor without overflow."""
BF16_OPSET = 22
"""The first whose Conv takes bfloat16."""
MIN_SM = {"fp16": 5.3, "int8": 6.1, "bf16": 8.0, "fp8": 8.9}
"""Compute capability from which TensorRT has the precision (TensorRT documentation, Support Matrix)."""
TARGET_SM = {"jetson-xavier": 7.2, "jetson-orin": 8.7, "jetson-thor": 11.0}
INSTALL = "pip install 'iekd-compress[quantize]'"
_BATCH = 8


@dataclass(frozen=True)
class CastResult:
    """What a cast did."""

    file: Path
    precision: str
    kept_float: tuple[str, ...]
    """Nodes in float32, because a value there would overflow."""
    largest: float
    """Largest absolute activation on the images, in float32."""
    relative_difference: float
    """Largest difference of a logit from the float32 file's, emulated, relative to the largest logit."""
    top1_agreement: float


def check_reachable(precision: str, target: str) -> None:
    """Raise InputError unless ``target`` can compute in ``precision``.

    Args:
        precision: fp32, fp16, bf16, int8 or fp8.
        target: a board or a runtime; those whose GPU is not known by name are not refused.
    """
    if precision not in ("fp32", *MIN_SM):
        raise unknown_name("precision", precision, ("fp32", *MIN_SM))
    has, needs = TARGET_SM.get(target), MIN_SM.get(precision, 0.0)
    if has is not None and has < needs:
        reachable = [name for name, sm in MIN_SM.items() if sm <= has]
        raise InputError(
            f"{target} has no {precision}: its GPU is SM {has}, {precision} needs SM {needs} or later.",
            f"Choose one of {', '.join(reachable)}.",
        )
    if precision == "fp8" and (target == "cpu" or "openvino" in target):
        raise InputError(f"{target} has no fp8.", "Choose int8.")


def cast_onnx(
    source: Path, output: Path, *, precision: str, images: Array, force: bool = False, tensorrt: bool = True
) -> CastResult:
    """Write ``source`` in ``precision``, with what would overflow left in float32.

    Args:
        source: a float32 file.
        output: appears only when it is whole and has been compared with ``source``.
        precision: fp16 or bf16.
        images: real, preprocessed images (N, 3, H, W) to look for overflow on.
        force: cast also what overflows; for demonstrating that the check is needed.
        tensorrt: the file is for TensorRT, and has to be a graph that it reads as meant.

    Raises:
        InputError: unknown precision; a file that is quantised or cast already.
        VerificationError: the result is not finite, or no graph for TensorRT.
    """
    if precision not in TYPES:
        raise unknown_name("precision", precision, TYPES)
    model = load_float(source)
    largest = activation_maxima(model, images)
    kept = () if force else _overflowing(model, largest, LARGEST[precision] / HEADROOM)
    cast = _to_half(model, kept)
    if precision == "bf16":
        cast = _half_to_bfloat(cast, model)
    if tensorrt:
        require_tensorrt_graph(cast, kept)
    with tempfile.TemporaryDirectory() as folder:
        trial = save_like(cast, Path(folder) / "cast.onnx", like=model, precision=precision)
        expected = _answers(get_backend("onnxruntime").load(source), images)
        actual = _answers(open_emulated(trial), images)
    if not np.isfinite(actual).all():
        raise VerificationError(
            f"{source} overflows in {precision}: {int((~np.isfinite(actual)).any(1).sum())} of {len(images)} images "
            "give logits that are not finite.",
            "Use bf16, whose range is float32's.",
        )
    save_like(cast, output, like=model, precision=precision)
    scale = max(float(np.abs(expected).max()), 1e-6)
    return CastResult(
        file=output,
        precision=precision,
        kept_float=kept,
        largest=max(largest.values(), default=0.0),
        relative_difference=float(np.abs(actual - expected).max()) / scale,
        top1_agreement=float((actual.argmax(1) == expected.argmax(1)).mean()),
    )


def _answers(session: Session, images: Array) -> Array:
    """Logits of all images, a few at a time: the maps of hundreds of large ones would not fit into a small memory."""
    return np.concatenate([session.run(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)])


def save_like(model: onnx.ModelProto, path: Path, *, like: onnx.ModelProto, precision: str) -> Path:
    """Write ``model``, checked, with the class names and the preprocessing of ``like`` and its own precision.

    Raises:
        VerificationError: the model is not valid ONNX, or its input or output are no longer those of ``like``.
    """
    entries = {entry.key: entry.value for entry in like.metadata_props}
    helper.set_model_props(model, {**entries, "precision": precision})
    model.producer_name, model.producer_version = "iekd-compress", __version__
    for ours, theirs in ((model.graph.input, like.graph.input), (model.graph.output, like.graph.output)):
        if [_interface(entry) for entry in ours] != [_interface(entry) for entry in theirs]:
            raise VerificationError(
                f"the {precision} file takes or gives {[_interface(entry) for entry in ours]} instead of "
                f"{[_interface(entry) for entry in theirs]}.",
                "Please report this.",
            )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise VerificationError(
            f"the {precision} file is not valid ONNX: {' '.join(str(error).split())[:200]}", "Please report this."
        ) from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def activation_maxima(model: onnx.ModelProto, images: Array) -> dict[str, float]:
    """Largest absolute value of every float32 activation on ``images``."""
    found: dict[str, float] = {}
    for values in activations(model, images):
        for name, value in values.items():
            found[name] = max(found.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
    return found


def activations(model: onnx.ModelProto, images: Array) -> Iterable[dict[str, Array]]:
    """Every float32 activation by name, for one small batch of ``images`` after the other."""
    import onnxruntime

    twin = onnx.shape_inference.infer_shapes(model)
    ends = {entry.name for entry in twin.graph.output}
    names = [info.name for info in twin.graph.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT]
    constants = {tensor.name for tensor in twin.graph.initializer}
    names = [name for name in names if name not in ends and name not in constants]
    inputs = model.graph.input[0].name
    twin.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(twin.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [entry.name for entry in session.get_outputs()]
    for at in range(0, len(images), _BATCH):
        batch = np.ascontiguousarray(images[at : at + _BATCH])
        yield {inputs: batch, **dict(zip(wanted, session.run(wanted, {inputs: batch}), strict=True))}


def open_emulated(path: Path, *, threads: int = 0) -> Session:
    """A 16-bit file as a session that rounds as a device would; see :func:`emulated`."""
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "emulated.onnx"
        onnx.save(emulated(onnx.load(str(path))), str(twin))
        return get_backend("onnxruntime").load(twin, threads=threads)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 twin of a 16-bit model that rounds each value to 16 bits where the model holds 16 bits."""
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    low = {
        info.name: info.type.tensor_type.elem_type
        for info in typed.graph.value_info
        if info.type.tensor_type.elem_type in LOW_PRECISION
    }
    twin = copy.deepcopy(model)
    del twin.graph.value_info[:]
    for tensor in twin.graph.initializer:
        _widen(tensor)
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
        rounded = [(at, name) for at, name in enumerate(node.output) if name in low]
        if node.op_type == "Cast" and rounded:
            node.attribute[0].i = TensorProto.FLOAT
        for at, name in rounded:
            node.output[at] = f"{name}_exact"
        nodes.append(node)
        for _, name in rounded:
            nodes.append(helper.make_node("Cast", [f"{name}_exact"], [f"{name}_rounded"], to=low[name]))
            nodes.append(helper.make_node("Cast", [f"{name}_rounded"], [name], to=TensorProto.FLOAT))
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    return twin


def _overflowing(model: onnx.ModelProto, largest: dict[str, float], limit: float) -> tuple[str, ...]:
    """Nodes that read or write a value beyond ``limit``."""
    values = dict(largest)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values[tensor.name] = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
    bad = {name for name, value in values.items() if not value <= limit}
    return tuple(node.name for node in model.graph.node if bad & {*node.input, *node.output})


def _to_half(model: onnx.ModelProto, kept: tuple[str, ...]) -> onnx.ModelProto:
    try:
        from onnxconverter_common.float16 import convert_float_to_float16
    except ImportError as error:
        raise EnvironmentMissingError("onnxconverter-common, which casts, is not installed.", INSTALL) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each weight below FP16's smallest, one warning a weight
        twin: onnx.ModelProto = convert_float_to_float16(
            copy.deepcopy(model),
            min_positive_val=0.0,  # the library raises smaller weights to its limit, and cuts larger ones to 10,000
            max_finite_val=LARGEST["fp16"],
            keep_io_types=True,
            op_block_list=[],
            node_block_list=list(kept),
        )
    del twin.graph.value_info[:]  # the library gives those beside kept nodes the wrong type
    return twin


def _half_to_bfloat(cast: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """The same casts with BF16 for FP16; weights are rounded from ``source``, not twice."""
    from ml_dtypes import bfloat16  # comes with onnx

    exact = {tensor.name: tensor for tensor in source.graph.initializer}
    tensors = [*cast.graph.initializer]
    for node in cast.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(exact.get(tensor.name, tensor)).astype(bfloat16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    raised: onnx.ModelProto = onnx.version_converter.convert_version(cast, BF16_OPSET)
    del raised.graph.output[:]  # onnx 1.23 declares the last Cast's output bfloat16 here
    raised.graph.output.extend(source.graph.output)
    return raised


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in LOW_PRECISION:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _interface(entry: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    kind = entry.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else "any" for side in kind.shape.dim]
    return entry.name, kind.elem_type, sides
