"""``iekd-compress bench``: accuracy and latency of files that exist, and the other modes of measuring them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from iekd.compress import bench_tables
from iekd.compress.board import config_of
from iekd.compress.data import ImageData, load_data
from iekd.compress.job import reopen_data
from iekd.compress.targets import TARGETS
from iekd.compress.views import plain_arrays
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.benchmark import LatencyRun, measure_latency
from iekd.deploy.engine import source_of
from iekd.deploy.export import read_metadata
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.openvino_format import is_openvino, weights_beside
from iekd.deploy.repeat import MULTI_STREAM_SAMPLES, Candidate, measure_publishable, repeat_ratio, require_several
from iekd.deploy.report import read_report
from iekd.deploy.results import Accuracy, Report
from iekd.deploy.throughput import measure_throughput
from iekd.errors import InputError
from iekd.files import refuse_output_folder, sha256_of, write_json
from iekd.models.preprocessing import Preprocessing

LATENCY_IMAGES = 64


@dataclass(frozen=True)
class Modes:
    """What is measured beside accuracy and latency."""

    streams: int = 0
    """Requests in flight for throughput; 0: no throughput."""
    repeat: int = 0
    """Fresh processes in which the ratio of two files is measured again; 0: none."""
    publishable: float = 0.0
    """Seconds of each of MLPerf's two long measurements; 0: none."""


@dataclass(frozen=True)
class _Opened:
    """One file, and what it is measured with."""

    path: Path
    session: Session
    images: Array
    """Some of the data, as this file wants them: (N, 3, H, W)."""
    accuracy: Accuracy


def bench_files(
    files: list[Path],
    *,
    data: str | None,
    val_fraction: float | None,
    skip_bad_images: bool = False,
    batch: int,
    seconds: float,
    threads: int | None,
    backend: str | None,
    output: Path | None,
    modes: Modes | None = None,
) -> list[Table]:
    """Measure files interleaved in one run: ONNX, .xml or engines.

    A run folder stands for its teacher and the file that ships.  Images and backend that are None are the first run's,
    where one is among the files, else the digits and ONNX Runtime.

    Returns:
        A table of accuracy and latency, and one for each further mode.

    Raises:
        InputError: a file is missing, says nothing of its preprocessing, does not take ``batch`` images, or was made
            for other classes than the data's; or the files take images of different sizes; or ``output`` is a file.
    """
    paths, modes, folder = _expand(files), modes or Modes(), output or Path("bench")
    refuse_output_folder(folder)
    config = next((config_of(report) for report in map(_report, files) if report), None)
    backend = backend or (TARGETS[config.target].backend if config else "onnxruntime")
    if modes.repeat and len(paths) != 2:
        raise InputError(f"--repeat measures the ratio of two files, not of {len(paths)}.", "Give two.")
    if modes.repeat:
        require_several(modes.repeat)
    cores = threads or len(os.sched_getaffinity(0))
    if data is None and val_fraction is None and config:
        config = dataclasses.replace(config, skip_bad_images=config.skip_bad_images or skip_bad_images)
        data, images = config.data, reopen_data(config, "Add --data with a folder of such images.")
    else:
        data = data or (config.data if config else "digits")
        images = load_data(data, val_fraction=val_fraction, skip_bad_images=skip_bad_images)
    largest = max(batch, MULTI_STREAM_SAMPLES if modes.publishable else 1)
    with contextlib.ExitStack() as stack:
        opened: dict[str, _Opened] = {}
        sessions: dict[str, Session] = {}
        names = _names(paths)
        for name, path in names.items():
            sessions[name] = get_backend(backend).load(path, threads=cores, batch=largest)
            stack.callback(sessions[name].close)
        for name, path in names.items():
            _check_batch(path, sessions[name], batch, largest)
            opened[name] = _judge(path, sessions[name], images, data, max(LATENCY_IMAGES, largest))
        feed = _one_size(opened)
        run = measure_latency(sessions, feed, folder=folder, batch=batch, seconds=seconds)
        _record(opened, run, cores, folder)
        accuracy = {name: file.accuracy for name, file in opened.items()}
        tables = [bench_tables.latency_table(accuracy, run, folder), *bench_tables.parts_tables(run.latency)]
        tables += _long_modes(sessions, feed, folder, batch, seconds, modes)
    if modes.repeat:  # in processes of their own, which want the memory that the sessions held
        first, second = (Candidate(path, backend, cores) for path in paths)
        found = repeat_ratio(
            first, second, feed, folder=folder / "repeat", processes=modes.repeat, batch=batch, seconds=seconds
        )
        tables.append(bench_tables.repeated_table(f"{paths[0].stem} / {paths[1].stem}", found, modes.repeat))
    return tables


def _judge(path: Path, session: Session, images: ImageData, data: str, count: int) -> _Opened:
    """The file's accuracy, and ``count`` images for its latency."""
    metadata = read_metadata(path if path.suffix != ".engine" else source_of(path))
    if metadata.classes != images.classes:
        raise InputError(
            f"{path} knows {len(metadata.classes)} classes, {data} has {len(images.classes)} others.",
            "Give --data that it was made for.",
        )
    accuracy, _ = measure_accuracy(session, plain_arrays(images, metadata.preprocessing), images.classes)
    return _Opened(path, session, _some(images, metadata.preprocessing, count), accuracy)


def _one_size(opened: dict[str, _Opened]) -> Array:
    """The images that all files are fed with."""
    if len({file.images.shape for file in opened.values()}) > 1:
        raise InputError(
            "these files take inputs of different sizes, so one interleaved run would compare unlike things.",
            "Give files of one input size, or measure them one by one.",
        )
    return next(iter(opened.values())).images


def _record(opened: dict[str, _Opened], run: LatencyRun, cores: int, folder: Path) -> None:
    """``bench.json``."""
    models = {
        name: {
            "file": str(file.path),
            "sha256": sha256_of(file.path),
            **_weights_sha256(file.path),
            "input_shape": list(file.session.input_shape),
            "accuracy": file.accuracy.model_dump(),
            "latency": run.latency[name].model_dump(),
            "backend": file.session.describe(),
        }
        for name, file in opened.items()
    }
    write_json(folder / "bench.json", {"models": models, "fingerprint": fingerprint(cores).model_dump()})


def _long_modes(
    sessions: dict[str, Session], images: Array, folder: Path, batch: int, seconds: float, modes: Modes
) -> Iterator[Table]:
    """Throughput and MLPerf's figures, where asked for."""
    if modes.streams:
        rates = {
            name: measure_throughput(
                session,
                images,
                trace=folder / f"throughput-{name}.npz",
                batch=batch,
                streams=modes.streams,
                seconds=seconds,
            )
            for name, session in sessions.items()
        }
        yield bench_tables.throughput_table(rates)
    if modes.publishable:
        long = {
            name: measure_publishable(session, images, folder=folder / f"publishable-{name}", seconds=modes.publishable)
            for name, session in sessions.items()
        }
        yield bench_tables.publishable_table(long, modes.publishable)


def _check_batch(path: Path, session: Session, batch: int, largest: int) -> None:
    """Refuse, before anything is measured, a file that does not take the batches that will be."""
    least, most = session.batch_range
    if batch >= least and (most is None or largest <= most):
        return
    asked = batch if batch < least else largest
    hint = f"`iekd-compress build MODEL.onnx --batch 1,{asked},{asked} -o ENGINE`, or give the ONNX file itself."
    raise InputError(
        f"{path} takes {least}{'' if least == most else f' to {most}'} images a call; {asked} were asked for.",
        hint if path.suffix == ".engine" else "Its batch is fixed: export it with an open one, or give --batch that.",
    )


def _expand(files: list[Path]) -> list[Path]:
    paths: list[Path] = []
    for file in files:
        if report := _report(file):
            paths += [file / "teacher.onnx", file / report.student.file]
        elif file.is_dir():
            found = [file / f"{role}.onnx" for role in ("teacher", "student") if (file / f"{role}.onnx").exists()]
            if not found:
                raise InputError(f"{file} holds no teacher.onnx or student.onnx.", "Give ONNX files or a finished run.")
            paths += found
        else:
            paths.append(file)
    return paths


def _report(file: Path) -> Report | None:
    """Of a run that has one."""
    report = file / "report.json"
    return read_report(report) if report.is_file() else None


def _weights_sha256(path: Path) -> dict[str, str]:
    """Of the .bin of an .xml, which says nothing of the weights by itself."""
    return {"weights_sha256": sha256_of(weights_beside(path))} if is_openvino(path) else {}


def _names(paths: list[Path]) -> dict[str, Path]:
    stems = [path.stem for path in paths]
    unique = stems if len(set(stems)) == len(stems) else [f"{number}-{stem}" for number, stem in enumerate(stems)]
    return dict(zip(unique, paths, strict=True))


def _some(data: ImageData, preprocessing: Preprocessing, count: int) -> Any:
    chosen = np.arange(count) % len(data.val)
    return np.stack([preprocessing(data.val[int(index)][0]) for index in chosen])
