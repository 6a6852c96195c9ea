"""Single stages on files of the user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from iekd.compress.data import ImageData, load_data
from iekd.compress.views import ViewDataset, auto_workers, plain_loader
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import get_backend
from iekd.deploy.backends.torch import TorchSession
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.export import export_onnx, read_metadata
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.verify import verify
from iekd.errors import InputError
from iekd.files import write_json
from iekd.models.checkpoint import load_artefact
from iekd.models.preprocessing import Preprocessing

LATENCY_IMAGES = 64


def export_artefact(folder: Path, output: Path) -> str:
    """Export an artefact, verified on images of noise where no data set is at hand; returns what to tell the user.

    Raises:
        InputError: not an artefact.
        VerificationError: the file does not compute what the network computes.
    """
    artefact = load_artefact(folder)
    network = artefact.network.eval()
    export_onnx(
        network,
        output,
        preprocessing=artefact.preprocessing,
        classes=artefact.classes,
        name=artefact.architecture.name,
    )
    session = get_backend("onnxruntime").load(output)
    size = artefact.preprocessing.size
    noise = np.random.default_rng(0).standard_normal((16, 3, size, size), dtype=np.float32)
    found = verify(session, TorchSession(network, session.input_shape), noise, name=artefact.architecture.name)
    return f"verified on 16 images of noise, largest difference {found.relative_difference:.1e} of the largest logit"


def bench_files(
    files: list[Path],
    *,
    data: str,
    val_fraction: float | None,
    batch: int,
    seconds: float,
    threads: int | None,
    backend: str,
    output: Path | None,
) -> Table:
    """Measure ONNX files interleaved in one run; a run folder stands for its teacher and student.

    Raises:
        InputError: a file is missing, says nothing of its preprocessing, or was made for other classes than the data's.
    """
    paths = _expand(files)
    cores = threads or len(os.sched_getaffinity(0))
    images = load_data(data, val_fraction=val_fraction)
    names = _names(paths)
    sessions = {name: get_backend(backend).load(path, threads=cores) for name, path in names.items()}
    inputs, accuracy = {}, {}
    for name, path in names.items():
        metadata = read_metadata(path)
        if metadata.classes != images.classes:
            raise InputError(
                f"{path} knows {len(metadata.classes)} classes, {data} has {len(images.classes)} others.",
                "Give --data that it was made for.",
            )
        inputs[name] = _some(images, metadata.preprocessing, max(LATENCY_IMAGES, batch))
        accuracy[name], _ = measure_accuracy(sessions[name], _batches(images, metadata.preprocessing), images.classes)
    if len({array.shape for array in inputs.values()}) > 1:
        raise InputError(
            "these files take inputs of different sizes, so one interleaved run would compare unlike things.",
            "Give files of one input size, or measure them one by one.",
        )
    folder = output or Path("bench")
    run = measure_latency(sessions, next(iter(inputs.values())), folder=folder, batch=batch, seconds=seconds)
    write_json(
        folder / "bench.json",
        {
            "models": {
                name: {
                    "file": str(path),
                    "accuracy": accuracy[name].model_dump(),
                    "latency": run.latency[name].model_dump(),
                    "backend": sessions[name].describe(),
                }
                for name, path in names.items()
            },
            "fingerprint": fingerprint(cores).model_dump(),
        },
    )
    return _table(names, accuracy, run, folder)


def _expand(files: list[Path]) -> list[Path]:
    paths: list[Path] = []
    for file in files:
        if file.is_dir():
            found = [file / f"{role}.onnx" for role in ("teacher", "student") if (file / f"{role}.onnx").exists()]
            if not found:
                raise InputError(f"{file} holds no teacher.onnx or student.onnx.", "Give ONNX files or a finished run.")
            paths += found
        else:
            paths.append(file)
    return paths


def _names(paths: list[Path]) -> dict[str, Path]:
    stems = [path.stem for path in paths]
    unique = stems if len(set(stems)) == len(stems) else [f"{number}-{stem}" for number, stem in enumerate(stems)]
    return dict(zip(unique, paths, strict=True))


def _some(data: ImageData, preprocessing: Preprocessing, count: int) -> Any:
    chosen = np.arange(count) % len(data.val)
    return np.stack([preprocessing(data.val[int(index)][0]) for index in chosen])


def _batches(data: ImageData, preprocessing: Preprocessing) -> Any:
    dataset = ViewDataset(data.val, preprocessing, "none", 0)
    for sample in plain_loader(dataset, batch_size=64, workers=auto_workers(data)):
        yield np.asarray(sample.image), np.asarray(sample.target)


def _table(names: dict[str, Path], accuracy: dict[str, Any], run: Any, folder: Path) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    for title in ("", "accuracy", "median ms", "95 %", "p99", "calls", "against the first"):
        table.add_column(title, justify="left" if not title else "right")
    first = next(iter(names))
    for name in names:
        latency = run.latency[name]
        ratio = run.ratio(first, name)
        table.add_row(
            name,
            f"{accuracy[name].top1.value:.2%}",
            f"{latency.median.value:.3f}",
            f"{latency.median.low:.3f} - {latency.median.high:.3f}",
            f"{latency.p99.value:.3f}",
            str(latency.iterations),
            "" if name == first else f"{ratio.value:.2f} x [{ratio.low:.2f}, {ratio.high:.2f}]",
        )
    table.caption = f"raw traces and bench.json in {folder}"
    return table
