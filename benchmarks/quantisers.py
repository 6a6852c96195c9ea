"""Our quantisation against each library's defaults: accuracy lost and latency, of the same trained students.

Each student has a folder of its own under --out; what is finished there is not done again.  Students are trained by the
project itself where --runs names no folder of trained runs (NAME/student.onnx and NAME/student/).  Calibration and the
choice between candidates see training images only; accuracy is that of the validation images, through the files.
Latency is interleaved in one run for each backend, batch 1.

For each student and backend ours is compared with the smallest drop of any library and, apart from that, with the
lowest latency of any: the last line holds the worst of each.

    python benchmarks/quantisers.py [--students mobilenetv2_100 ...] [--runs FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import iekd
from iekd.compress.calibration import choose_images
from iekd.compress.data import load_data
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.export import read_metadata
from iekd.deploy.fingerprint import fingerprint
from iekd.files import write_json
from iekd.models.checkpoint import load_artefact

STUDENTS = (
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "resnet18",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
)
SCHEMES = {"onnxruntime": "int8-x86-onnxruntime", "openvino": "int8-openvino"}
OURS = "ours"
Rival = Callable[[Path, Path, Array], Path]
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


RIVALS: dict[str, Rival] = {
    "onnxruntime": onnxruntime_default,
    "nncf-openvino": nncf_openvino_default,
    "nncf-onnx": nncf_onnx_default,
    "modelopt": modelopt_default,
    "torchao": torchao_default,
}


class Images:
    """The data of one student, preprocessed as its file says."""

    def __init__(self, spec: str, run: Path, seed: int) -> None:
        data = load_data(spec)
        how = read_metadata(run / "student.onnx").preprocessing
        self.classes = data.classes
        parts = {}
        for name, source in (("train", data.train), ("val", data.val)):
            images = np.stack([how(source[index][0]) for index in range(len(source))])
            parts[name] = images, np.asarray(source.targets)
        self.val: tuple[Array, NDArray[np.int64]] = parts["val"]
        images, labels = parts["train"]
        held = np.random.default_rng(seed).permutation(len(images)) < len(images) // 4
        self.train: tuple[Array, NDArray[np.int64]] = images[~held], labels[~held]
        self.held_out: tuple[Array, NDArray[np.int64]] = images[held], labels[held]


def trained(student: str, arguments: argparse.Namespace, folder: Path) -> Path:
    """The student's run folder, trained now if need be; a run that was stopped goes on where it was."""
    if arguments.runs:
        return Path(arguments.runs) / student
    limits = {"train_limit": arguments.train_limit, "val_limit": arguments.val_limit}
    iekd.run(
        teacher=arguments.teacher,
        student=student,
        data=arguments.data,
        image_size=arguments.size,
        epochs=arguments.epochs,
        teacher_epochs=arguments.teacher_epochs,
        factor_epochs=arguments.factor_epochs,
        seed=arguments.seed,
        bench_seconds=0.5,
        min_retained=0.01,
        out=str(folder / "run"),
        **limits,
    )
    return folder / "run"


def made_by_libraries(run: Path, folder: Path, images: Array) -> tuple[dict[str, Path], dict[str, str]]:
    """Files by library, and the reason for each that made none."""
    files, missing = {}, {}
    for name, rival in RIVALS.items():
        try:
            with quiet():
                files[name] = rival(run, folder, images)
        except Exception as error:  # whatever a library cannot do is a finding, not the end
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            print(f"  {name} made no file: {missing[name]}", flush=True)
    return files, missing


def compare(student: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All files of one student, measured."""
    folder = Path(arguments.out) / student
    finished = folder / "result.json"
    if finished.is_file():
        return dict(json.loads(finished.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    run = trained(student, arguments, folder)
    data = Images(arguments.data, run, arguments.seed)
    count = min(arguments.calibration_images, len(data.train[0]))
    calibration = choose_images(data.train[0], data.train[1], count=count, seed=arguments.seed)
    rivals, missing = made_by_libraries(run, folder, calibration)
    settings = QuantizeSettings(calibration_images=count, seed=arguments.seed, max_drop=arguments.max_drop)
    rows: list[dict[str, Any]] = []
    for backend, scheme in SCHEMES.items():
        result = quantize(
            run / "student.onnx",
            folder / f"{scheme}.onnx",
            scheme=scheme,
            images=data.train[0],
            labels=data.train[1],
            held_out=data.held_out,
            settings=settings,
        )
        print(f"  {scheme}: {result.chosen.recipe}, {result.chosen.method}", flush=True)
        readable = {name: file for name, file in rivals.items() if backend == "openvino" or file.suffix == ".onnx"}
        rows += measured(
            backend, {"float32": run / "student.onnx", OURS: result.file, **readable}, data, folder, arguments
        )
    found = {
        "student": student,
        "rows": rows,
        "missing": missing,
        "fingerprint": fingerprint(arguments.threads).model_dump(),
    }
    write_json(finished, found)
    return found


def measured(
    backend: str, files: dict[str, Path], data: Images, folder: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Accuracy on the validation images and interleaved latency of each file."""
    sessions = {name: get_backend(backend).load(file, threads=arguments.threads) for name, file in files.items()}
    images, labels = data.val
    accuracy = {}
    for name, session in sessions.items():
        batches = ((images[at : at + 1], labels[at : at + 1]) for at in range(len(images)))  # some files fix the batch
        accuracy[name] = measure_accuracy(session, batches, data.classes)[0].top1.value
    latency = measure_latency(sessions, images[:64], folder=folder / backend, seconds=arguments.seconds).latency
    return [
        {
            "backend": backend,
            "file": name,
            "drop_points": 100 * (accuracy["float32"] - accuracy[name]),
            "latency_ms": latency[name].median.value,
            "over_float32": latency[name].median.value / latency["float32"].median.value,
        }
        for name in files
    ]


def gaps(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """The worst of ours over all backends: points more than the smallest drop, times the lowest latency."""
    points, ratios = [], []
    for backend in {row["backend"] for row in rows}:
        mine = next(row for row in rows if row["backend"] == backend and row["file"] == OURS)
        others = [row for row in rows if row["backend"] == backend and row["file"] not in (OURS, "float32")]
        if others:
            points.append(mine["drop_points"] - min(row["drop_points"] for row in others))
            ratios.append(mine["latency_ms"] / min(row["latency_ms"] for row in others))
    return max(points, default=float("nan")), max(ratios, default=float("nan"))


@contextlib.contextmanager
def quiet() -> Any:
    """Libraries log and print; the table is what is wanted."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--students", nargs="+", default=list(STUDENTS))
    found.add_argument("--runs", help="trained run folders, one a student, instead of training")
    found.add_argument("--out", default="runs/quantisers")
    found.add_argument("--data", default="digits")
    found.add_argument("--size", type=int, default=64)
    found.add_argument("--teacher", default="resnet50")
    found.add_argument("--epochs", type=int)
    found.add_argument("--teacher-epochs", type=int)
    found.add_argument("--factor-epochs", type=int, default=10)
    found.add_argument("--train-limit", type=int)
    found.add_argument("--val-limit", type=int)
    found.add_argument("--calibration-images", type=int, default=256)
    found.add_argument("--max-drop", type=float, default=0.01)
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--seconds", type=float, default=3.0, help="measured for each file")
    found.add_argument("--seed", type=int, default=0)
    return found


def main() -> None:
    arguments = parser().parse_args()
    worst = []
    for student in arguments.students:
        print(student, flush=True)
        found = compare(student, arguments)
        for row in found["rows"]:
            print(
                f"  {row['backend']:12} {row['file']:14} {row['drop_points']:+6.2f} points "
                f"{row['latency_ms']:8.3f} ms {row['over_float32']:5.2f} of float32"
            )
        worst.append(gaps(found["rows"]))
    points, ratios = zip(*worst, strict=True)
    print(f"RESULT worst_drop_gap={max(points):.2f} worst_latency_ratio={max(ratios):.3f}")


if __name__ == "__main__":
    main()
