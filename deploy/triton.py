"""A model repository for NVIDIA's Triton Inference Server, from an exported ONNX file and from its TensorRT plan.

Layout and settings as Triton's user guide has them (Model Repository; Model Configuration).  Nothing here starts a
server: what is written is checked against the ONNX file, and the plan against the manifest beside it, before anything
is moved into place.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iekd.deploy.device.engine_cache import Manifest, onnx_sha256
from iekd.deploy.engine import domain_errors
from iekd.deploy.export import read_metadata
from iekd.deploy.openvino_format import refuse_openvino
from iekd.errors import InputError
from iekd.files import atomic_folder, refuse_output_folder, sha256_of

LABELS = "labels.txt"
CONFIG = "config.pbtxt"
PREPROCESSING = "preprocessing"


@dataclass(frozen=True)
class Form:
    """One of the forms that Triton serves a network in."""

    platform: str
    file: str
    """Triton's default name of the file in a version's folder."""
    device: str
    """Instance kind: KIND_AUTO is the GPU where there is one; a plan runs nowhere else."""


FORMS = {
    "onnx": Form("onnxruntime_onnx", "model.onnx", "KIND_AUTO"),
    "plan": Form("tensorrt_plan", "model.plan", "KIND_GPU"),
}


@dataclass(frozen=True)
class Interface:
    """What a client must know of the network."""

    input: str
    output: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    preprocessing: str
    """JSON; travels as a parameter of the model, for Triton does not preprocess."""
    batch: int | None
    """Where the file's batch is fixed."""


def write_repository(
    output: Path,
    name: str,
    onnx: Path | None,
    plan: Path | None,
    *,
    max_batch: int,
    instances: int = 1,
    dynamic_batching_us: int | None = None,
) -> Path:
    """Write ``NAME_onnx`` and ``NAME_plan`` into a Triton model repository; returns ``output``.

    A model that is there already gets its next version, which Triton then serves in place of the one before; a
    model of another interface under that name is refused, for its clients would break.

    Args:
        output: the repository; made where it is missing.
        name: letters, digits, ``_``, ``-`` and ``.``.
        onnx: a file that iekd-compress exported.  Names, shape and classes are read from it, also for ``plan``.
        plan: an engine that was built from ``onnx`` on the server's own GPU and TensorRT version, its manifest beside.
        max_batch: the largest batch; a plan's optimisation profile must reach from 1 as far.
        instances: copies that answer at once, for each device.
        dynamic_batching_us: how long a request may wait to be batched with others, in microseconds; None: never.

    Raises:
        InputError: no ONNX file, bad numbers or name, a file where a folder is to be, another interface under that
            name, or a plan that Triton cannot serve so: stripped of its weights, of other batches, of another file, or
            without its manifest.
    """
    if onnx is None:
        raise InputError(
            "a Triton repository needs the ONNX file: a plan names neither its classes nor its preprocessing.",
            "Give the ONNX file that the plan was built from, too.",
        )
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise InputError(f"'{name}' cannot be a model's name.", "Use letters, digits, '_', '-' and '.'.")
    if max_batch < 1 or instances < 1 or (dynamic_batching_us is not None and dynamic_batching_us < 0):
        raise InputError("batch and instances must be at least 1, the delay at least 0.", "Change the numbers.")
    interface = read_interface(onnx)
    if interface.batch is not None:
        raise InputError(
            f"{onnx} takes exactly {interface.batch} image(s) a call.", "Export it with a dynamic batch for serving."
        )
    files = {form: path for form, path in (("onnx", onnx), ("plan", plan)) if path is not None}
    for form, path in files.items():
        if not path.is_file():
            raise InputError(f"no file at {path}.", "Check the path.")
        refuse_output_folder(output / f"{name}_{form}")
    if plan is not None:
        _check_plan(plan, onnx, max_batch)
    for form, path in files.items():
        model = f"{name}_{form}"
        config = config_text(
            model, FORMS[form], interface, max_batch=max_batch, instances=instances, delay=dynamic_batching_us
        )
        _write_model(output / model, FORMS[form], path, config, interface)
    return output


def server_command(repository: Path, plan: Path | None) -> str:
    """The command that serves ``repository``.

    Args:
        repository: written by :func:`write_repository`.
        plan: what it was given; a version-compatible plan is loaded only by a backend that is told to.

    Raises:
        InputError: the plan has no manifest.
    """
    command = ["tritonserver", f"--model-repository={repository}"]
    if plan is not None:
        with domain_errors():
            options = Manifest.read(plan).identity.options
        if options.get("version_compatible"):
            command.append("--backend-config=tensorrt,version-compatible=true")
    return shlex.join(command)


def read_interface(onnx: Path) -> Interface:
    """What a client must know, read from a file that iekd-compress exported.

    Raises:
        InputError: not such a file.
    """
    import onnx as onnx_

    refuse_openvino(onnx, "serve-config", "Give the run's ONNX file, such as RUN/student.onnx.")
    metadata = read_metadata(onnx)
    graph = onnx_.load(str(onnx), load_external_data=False).graph
    dims = list(graph.input[0].type.tensor_type.shape.dim)
    sides = [dim.dim_value for dim in dims[1:]]
    answers = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    if len(graph.input) != 1 or len(sides) != 3 or not all(sides) or answers != len(metadata.classes):
        raise InputError(
            f"{onnx} is not an image classifier: {len(graph.input)} input(s) of {sides}, {answers} answers, "
            f"{len(metadata.classes)} classes.",
            "Give a file that iekd-compress exported.",
        )
    return Interface(
        input=graph.input[0].name,
        output=graph.output[0].name,
        shape=(sides[0], sides[1], sides[2]),
        classes=metadata.classes,
        preprocessing=metadata.preprocessing.to_json(),
        batch=dims[0].dim_value if dims[0].WhichOneof("value") == "dim_value" else None,
    )


def _check_plan(plan: Path, onnx: Path, max_batch: int) -> None:
    """Refuse what would fail, or answer for another network, only once the server runs."""
    with domain_errors():
        manifest = Manifest.read(plan)
    options = manifest.identity.options
    if sha256_of(plan) != manifest.engine_sha256:
        raise InputError(f"{plan} is not the file that its manifest describes.", "Build it again.")
    if manifest.identity.onnx_sha256 != onnx_sha256(onnx):
        raise InputError(
            f"{plan} was not built from {onnx} but from {manifest.onnx}.", "Give that file, or build again."
        )
    if options.get("strip_plan"):
        raise InputError(f"{plan} holds no weights, and Triton cannot put them back.", "Build it without --strip.")
    smallest, _, largest = options.get("batch") or (0, 0, 0)
    if smallest > 1 or largest < max_batch:
        raise InputError(
            f"{plan} takes batches of {smallest} to {largest}; Triton would send it 1 to {max_batch}.",
            f"Build it with --batch 1,{max_batch},{max_batch}, or choose another --max-batch.",
        )


def config_text(
    model: str, form: Form, interface: Interface, *, max_batch: int, instances: int, delay: int | None
) -> str:
    """Triton's ``config.pbtxt``: an inference.ModelConfig message as protobuf text."""
    entries: dict[str, Any] = {
        "name": model,
        "platform": form.platform,
        "max_batch_size": max_batch,  # the batch dimension is left out of dims below
        "input": [
            {"name": interface.input, "data_type": Word("TYPE_FP32"), "dims": list(interface.shape)},
        ],
        "output": [
            {
                "name": interface.output,
                "data_type": Word("TYPE_FP32"),
                "dims": [len(interface.classes)],
                "label_filename": LABELS,
            },
        ],
        "instance_group": [{"count": instances, "kind": Word(form.device)}],
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": {"key": PREPROCESSING, "value": {"string_value": interface.preprocessing}},
    }
    if delay is not None:
        entries["dynamic_batching"] = {"max_queue_delay_microseconds": delay}
    return _text(entries)


class Word(str):
    """A value of an enumeration, written without quotes."""


def _text(entries: dict[str, Any], indent: str = "") -> str:
    """A message as protobuf text; a list of messages or numbers is a repeated field."""
    lines = []
    for key, value in entries.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                lines.append(f"{indent}{key} {{\n{_text(entry, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{key}: {_scalar(entry)}\n")
    return "".join(lines)


def _scalar(value: str | int) -> str:
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # protobuf text takes JSON's escapes, but no surrogate pairs


def _write_model(folder: Path, form: Form, file: Path, config: str, interface: Interface) -> None:
    """The model with one version more than before, and whatever else its folder holds; never half of it."""
    versions = _versions(folder)
    if versions:
        _check_same_interface(folder, interface)
    with atomic_folder(folder) as temporary:
        if folder.is_dir():
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
        target = temporary / str(max(versions, default=0) + 1)
        target.mkdir()
        shutil.copyfile(file, target / form.file)
        (temporary / LABELS).write_text(_labels(interface), encoding="utf-8")
        (temporary / CONFIG).write_text(config, encoding="utf-8")


def _labels(interface: Interface) -> str:
    """One class a line, in the order of the logits: a line break within a name would shift all that follow."""
    return "".join(" ".join(name.split()) + "\n" for name in interface.classes)


def _versions(folder: Path) -> list[int]:
    """Triton takes a folder for a version if its name is a number that does not begin with 0."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", path.name))


def _check_same_interface(folder: Path, interface: Interface) -> None:
    labels, config = folder / LABELS, folder / CONFIG
    same_labels = labels.is_file() and labels.read_text(encoding="utf-8") == _labels(interface)
    dims = re.findall(r"dims: (\d+)", config.read_text(encoding="utf-8")) if config.is_file() else []
    if not same_labels or dims != [str(side) for side in (*interface.shape, len(interface.classes))]:
        raise InputError(
            f"{folder} serves a model of other classes or another input size.",
            "Choose another name, or remove that folder.",
        )
