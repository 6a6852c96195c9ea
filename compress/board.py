"""From a finished run to a board: the bundle, with a teacher's accuracy on the very images that travel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.config import RunConfig
from iekd.compress.config_input import make_config
from iekd.compress.data import ImageData
from iekd.compress.job import reopen_data
from iekd.compress.variants import read_variants
from iekd.deploy.backends import get_backend
from iekd.deploy.bundle import write_bundle
from iekd.deploy.export import read_metadata
from iekd.deploy.openvino_format import is_openvino
from iekd.deploy.report import read_report
from iekd.deploy.results import Report
from iekd.errors import InputError
from iekd.files import refuse_output_file
from iekd.models.preprocessing import Preprocessing


def bundle_run(run: Path, output: Path, *, images: int = 300, data: ImageData | None = None) -> str:
    """Write the bundle of a run's student; returns what to tell the user.

    Args:
        run: folder of a finished run.
        output: the zip.
        images: validation images that travel, at most; spread over the set.
        data: the run's; None: opened as its settings say.

    Raises:
        InputError: no run folder, the run is unfinished, its data is not where it was, or ``output`` is a folder or one
            of the files that are packed.
    """
    if run.is_file():
        raise InputError(f"{run} is a file, and a bundle is made of a run.", "Give the folder of a finished run.")
    report = read_report(run / "report.json")
    config = config_of(report)
    models = student_files(run)
    refuse_output_file(output, *models.values(), run / "teacher.onnx", run / "report.json")
    data = data or reopen_data(config, "Call iekd.compress.board.bundle_run(run, output, data=...) from Python.")
    about = read_metadata(next(iter(models.values())))
    pixels, labels = _some(data, about.preprocessing, images)
    limit = report.verdict.min_retained * _accuracy(run / "teacher.onnx", pixels, labels)
    write_bundle(
        output,
        models,
        pixels,
        labels,
        min_accuracy=min(1.0, limit),
        max_latency_ms=config.max_latency_ms,
        host=_host(report),
    )
    size = output.stat().st_size / 1e6
    stays = "".join(
        f"  {variant.precision} is left out: {variant.file} is in OpenVINO's own format, which no board reads."
        for variant in read_variants(run)
        if is_openvino(Path(variant.file))
    )
    return (
        f"{', '.join(models)}; {len(labels)} images; {size:.1f} MB.{stays}  On the board: unzip it, then python3 run.py"
    )


def config_of(report: Report) -> RunConfig:
    """The settings that a run was made with."""
    return make_config(report.config)


def student_files(run: Path) -> dict[str, Path]:
    """The run's ONNX files by precision: ``student.onnx`` is fp32, its variants the others, but for OpenVINO's own.

    Raises:
        InputError: there is no exported student.
    """
    files = {"fp32": run / "student.onnx"}
    files |= {variant.precision: run / variant.file for variant in read_variants(run)}
    if not files["fp32"].is_file():
        raise InputError(f"{run} holds no student.onnx.", "Finish the run first.")
    return {name: path for name, path in files.items() if not is_openvino(path)}


def _some(data: ImageData, preprocessing: Preprocessing, count: int) -> tuple[Any, Any]:
    """Images after ``Preprocessing.fit``, uint8 (N, size, size, 3), and classes (N,)."""
    chosen = np.linspace(0, len(data.val) - 1, min(count, len(data.val))).round().astype(int)
    pairs = [data.val[int(index)] for index in chosen]
    pixels = np.stack([np.asarray(preprocessing.fit(image).convert("RGB"), dtype=np.uint8) for image, _ in pairs])
    return pixels, np.array([target for _, target in pairs], dtype=np.int64)


def _accuracy(file: Path, pixels: Any, labels: Any) -> float:
    preprocessing = read_metadata(file).preprocessing
    session = get_backend("onnxruntime").load(file)
    right = 0
    for start in range(0, len(labels), 64):
        batch = np.stack([preprocessing.normalize(image) for image in pixels[start : start + 64]])
        right += int((session.run(batch.astype(np.float32)).argmax(1) == labels[start : start + 64]).sum())
    session.close()
    return right / len(labels)


def _host(report: Report) -> Mapping[str, Any]:
    models = {
        model.precision: {"accuracy": model.accuracy.top1.value, "median_ms": model.latency.median.value}
        for model in (report.student, *report.variants)
    }
    return {"device": report.fingerprint.device, "models": models}
