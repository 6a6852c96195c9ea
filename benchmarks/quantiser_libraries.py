"""What each library makes of a trained student by its own defaults: files for benchmarks/quantisers.py."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx

from iekd.deploy.backends import Array
from iekd.files import write_json
from iekd.models.checkpoint import load_artefact

Library = Callable[[Path, Path, Array], Path]
"""Takes the run folder, the folder to write to and calibration images; gives the file."""


def onnxruntime_default(run: Path, folder: Path, images: Array) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter([{"images": image[np.newaxis]} for image in images])

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    quantize_static(str(run / "student.onnx"), str(folder / "onnxruntime.onnx"), Reader())
    return folder / "onnxruntime.onnx"


def nncf_openvino_default(run: Path, folder: Path, images: Array) -> Path:
    import nncf
    import openvino

    model = openvino.Core().read_model(run / "student.onnx")
    quantized = nncf.quantize(model, nncf.Dataset([image[np.newaxis] for image in images]), subset_size=len(images))
    openvino.save_model(quantized, str(folder / "nncf.xml"))
    return folder / "nncf.xml"


def nncf_onnx_default(run: Path, folder: Path, images: Array) -> Path:
    import nncf

    model = onnx.load(str(run / "student.onnx"))
    dataset = nncf.Dataset([{"images": image[np.newaxis]} for image in images])
    onnx.save(nncf.quantize(model, dataset, subset_size=len(images)), str(folder / "nncf.onnx"))
    return folder / "nncf.onnx"


def modelopt_default(run: Path, folder: Path, images: Array) -> Path:
    from modelopt.onnx.quantization import quantize as modelopt_quantize

    file = folder / "modelopt.onnx"
    modelopt_quantize(
        str(run / "student.onnx"),
        calibration_data={"images": images},
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",  # its default, fp16, has no kernels on a CPU
        output_path=str(file),
    )
    return file


def torchao_default(run: Path, folder: Path, images: Array) -> Path:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    network = load_artefact(run / "student").network.eval()
    shapes = ({0: torch.export.Dim("batch")},)
    example = (torch.from_numpy(images[:2]),)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(network, example, dynamic_shapes=shapes).module(), quantizer)
    with torch.no_grad():
        for at in range(0, len(images), 16):
            prepared(torch.from_numpy(images[at : at + 16]))
    program = torch.onnx.export(
        convert_pt2e(prepared), example, dynamo=True, opset_version=20, dynamic_shapes=shapes, input_names=["images"]
    )
    assert program is not None
    program.save(str(folder / "torchao.onnx"))
    return folder / "torchao.onnx"


LIBRARIES: dict[str, Library] = {
    "onnxruntime": onnxruntime_default,
    "nncf-openvino": nncf_openvino_default,
    "nncf-onnx": nncf_onnx_default,
    "modelopt": modelopt_default,
    "torchao": torchao_default,
}


def made_by_libraries(run: Path, folder: Path, images: Array) -> tuple[dict[str, Path], dict[str, str]]:
    """Files by library, and the reason for each that made none; what was made before is not made again."""
    record = folder / "libraries.json"
    files: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["files"] if record.is_file() else {}
    missing: dict[str, str] = {}
    for name in LIBRARIES:
        if name in files:
            continue
        try:
            # a process for each: importing modelopt changes ONNX Runtime's quantiser for whoever comes after it
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                files[name] = process.submit(_make, name, run, folder, images).result()
        except Exception as error:  # whatever a library cannot do is a finding, not the end
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            print(f"  {name} made no file: {missing[name]}", flush=True)
    write_json(record, {"files": files, "missing": missing})
    return {name: folder / file for name, file in files.items()}, missing


def _make(name: str, run: Path, folder: Path, images: Array) -> str:
    with quiet():
        return LIBRARIES[name](run, folder, images).name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries log and print; the table is what is wanted."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
