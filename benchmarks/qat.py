"""What training under simulated quantisation brings back where INT8 loses accuracy.

For each INT8 scheme the student of a finished run is quantised as it is, and after the same epochs, seed and learning
rate of four trainings: under simulated quantisation by IE-KD, by KD and by the labels alone, and by IE-KD in float,
which tells what more training does by itself.  All are quantised by the scheme's recipes; accuracy is that of the files
on the validation images, which decide nothing.

The folder keeps everything: started again, the command goes on where it stopped.

    iekd-compress --teacher resnet18 --student mobilenetv2_100 --image-size 32 --out runs/mine
    python benchmarks/qat.py runs/mine runs/mine-qat [--epochs 4]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.calibration import METHODS
from iekd.compress.diagnostics.finished_run import open_run
from iekd.compress.distill import Schedule, distill_network, load_teacher
from iekd.compress.job import Job, make_accelerator, open_data
from iekd.compress.observer import Observer
from iekd.compress.plan import Plan, plan_from_json
from iekd.compress.qat import LR_SHARE, train_network_quantized
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.quantizers import SCHEMES
from iekd.compress.quantizers.simulated import GRIDS
from iekd.compress.variants import training_images
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import get_backend
from iekd.deploy.export import export_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.files import write_json
from iekd.models.checkpoint import load_artefact

WAYS = {"none": "", "ie-kd": "ie-ft+kd", "kd": "kd", "labels": "ce", "ie-kd in float": "ie-ft+kd"}
"""How the student is trained on before it is quantised: the objective."""


def main() -> None:
    arguments = _arguments()
    job, plan = _open(arguments.run, arguments.folder)
    before = _accuracy(arguments.run / "student.onnx", "onnxruntime", job)
    print(f"student in float32 {before:.2%}, {len(job.data.val)} images", flush=True)
    rows = [_row(scheme, way, job, plan, arguments) for scheme in arguments.schemes for way in arguments.ways]
    _print(rows, before, arguments)


def _open(run: Path, folder: Path) -> tuple[Job, Plan]:
    """What the run's stages saw, on a copy of what they made."""
    for part in ("teacher", "student", "checkpoints/factors"):
        if (run / part).exists() and not (folder / part).exists():
            shutil.copytree(run / part, folder / part)
    plan = plan_from_json(json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["plan"]["result"])
    config = plan.settle(open_run(run).config)
    data = open_data(config)
    return Job(config, data, plan.preprocessing, plan.augmentation, make_accelerator(config), Observer(), folder), plan


def _row(scheme: str, way: str, job: Job, plan: Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, export, quantise and measure, unless a former call did."""
    name = f"{scheme}-{way.replace(' ', '-')}"
    folder: Path = arguments.folder / "rows"
    file = folder / f"{name}.json"
    if not file.is_file():
        folder.mkdir(exist_ok=True)
        artefact = load_artefact(job.folder / "student")
        if WAYS[way]:
            _train(artefact.network, scheme, way, job, Schedule(name, plan.lr * LR_SHARE, arguments.epochs))
        source, network = folder / f"{name}.onnx", artefact.network.cpu().eval()
        export_onnx(
            network, source, preprocessing=job.preprocessing, classes=job.data.classes, name=artefact.architecture.name
        )
        (images, labels), held_out = training_images(job, min(arguments.calibration_images, len(job.data.train) // 2))
        made = quantize(
            source,
            folder / f"{name}-int8.onnx",
            scheme=scheme,
            images=images,
            labels=labels,
            held_out=held_out,
            settings=QuantizeSettings(
                calibration_images=len(labels),
                methods=tuple(arguments.methods),
                max_drop=None,
                seed=job.config.seed,
                threads=job.config.threads or 0,
            ),
        )
        write_json(
            file,
            {
                "scheme": scheme,
                "way": way,
                "float": _accuracy(source, "onnxruntime", job),
                "int8": _accuracy(made.file, SCHEMES[scheme].backend, job),
                "held_out": made.after.top1.value,
                "error": made.chosen.error,
                "recipe": f"{made.chosen.recipe}, {made.chosen.method}",
            },
        )
    row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    print(f"{scheme:22} {way:15} float {row['float']:.2%}  int8 {row['int8']:.2%}  ({row['recipe']})", flush=True)
    return row


def _train(network: Any, scheme: str, way: str, job: Job, schedule: Schedule) -> None:
    own = dataclasses.replace(job, config=dataclasses.replace(job.config, objective=WAYS[way]))
    teacher = load_teacher(job, job.config.teacher)
    if way == "ie-kd in float":
        distill_network(network, teacher, schedule, own)
    else:
        train_network_quantized(network, teacher, schedule, own, scheme)


def _accuracy(file: Path, backend: str, job: Job) -> float:
    """Of a file on the validation images."""
    session = get_backend(backend).load(file, threads=job.config.threads or 0)
    accuracy, _ = measure_accuracy(session, job.val_arrays(), job.data.classes)
    session.close()
    return accuracy.top1.value


def _print(rows: list[dict[str, Any]], before: float, arguments: argparse.Namespace) -> None:
    config = open_run(arguments.run).config
    device = fingerprint(config.threads or 0).device
    print(f"\n{config.student} from {config.teacher} on {config.data}, float32 {before:.2%}; {device}")
    print(f"{arguments.epochs} epochs of training on, seed {config.seed}\n")
    print("| scheme | trained on | float32 | int8 | int8 against float32 before, points | error of the logits |")
    print("|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| `{row['scheme']}` | {row['way']} | {row['float']:.2%} | {row['int8']:.2%} | "
            f"{100 * (row['int8'] - before):+.2f} | {row['error']:.4f} |"
        )
    mean = {way: np.mean([row["int8"] - before for row in rows if row["way"] == way]) for way in arguments.ways}
    print("RESULT " + " ".join(f"{way.replace(' ', '_')}={100 * mean[way]:+.2f}" for way in arguments.ways))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("folder", type=Path, help="where everything is kept; the same folder resumes")
    parser.add_argument("--schemes", nargs="+", choices=list(GRIDS), default=["int8-x86-onnxruntime", "int8-tensorrt"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--epochs", type=int, default=4, help="of every training on")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="calibrations to compare")
    parser.add_argument("--calibration-images", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    main()
