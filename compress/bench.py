"""``iekd-compress bench``: accuracy and latency of files that exist, and the other modes of measuring them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from iekd.compress.data import ImageData, load_data
from iekd.compress.views import ViewDataset, auto_workers, plain_loader
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Session, get_backend
from iekd.deploy.benchmark import PARTS, measure_latency
from iekd.deploy.engine import source_of
from iekd.deploy.export import read_metadata
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.openvino_format import is_openvino, weights_beside
from iekd.deploy.repeat import MULTI_STREAM_SAMPLES, Candidate, measure_publishable, repeat_ratio
from iekd.deploy.results import Latency
from iekd.deploy.throughput import measure_throughput
from iekd.errors import InputError
from iekd.files import sha256_of, write_json
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
    modes: Modes | None = None,
) -> list[Table]:
    """Measure files interleaved in one run: ONNX, .xml or engines; a run folder stands for its teacher and student.

    Returns:
        A table of accuracy and latency, and one for each further mode.

    Raises:
        InputError: a file is missing, says nothing of its preprocessing, does not take ``batch`` images, or was made
            for other classes than the data's.
    """
    paths, modes = _expand(files), modes or Modes()
    if modes.repeat and len(paths) != 2:
        raise InputError(f"--repeat measures the ratio of two files, not of {len(paths)}.", "Give two.")
    cores = threads or len(os.sched_getaffinity(0))
    images = load_data(data, val_fraction=val_fraction)
    names = _names(paths)
    needed = max(batch, MULTI_STREAM_SAMPLES if modes.publishable else 1)
    sessions = {name: get_backend(backend).load(path, threads=cores, batch=needed) for name, path in names.items()}
    inputs, accuracy = {}, {}
    for name, path in names.items():
        _check_batch(path, sessions[name], batch, needed)
        metadata = read_metadata(path if path.suffix != ".engine" else source_of(path))
        if metadata.classes != images.classes:
            raise InputError(
                f"{path} knows {len(metadata.classes)} classes, {data} has {len(images.classes)} others.",
                "Give --data that it was made for.",
            )
        inputs[name] = _some(images, metadata.preprocessing, max(LATENCY_IMAGES, batch, MULTI_STREAM_SAMPLES))
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
                    "sha256": sha256_of(path),
                    **_weights_sha256(path),
                    "input_shape": list(sessions[name].input_shape),
                    "accuracy": accuracy[name].model_dump(),
                    "latency": run.latency[name].model_dump(),
                    "backend": sessions[name].describe(),
                }
                for name, path in names.items()
            },
            "fingerprint": fingerprint(cores).model_dump(),
        },
    )
    tables = [_table(names, accuracy, run, folder), *_parts(run.latency)]
    images_used = next(iter(inputs.values()))
    if modes.streams:
        tables.append(_throughput(sessions, images_used, folder, batch, modes.streams, seconds))
    if modes.publishable:
        tables.append(_publishable(sessions, images_used, folder, modes.publishable))
    if modes.repeat:
        for session in sessions.values():
            session.close()
        sides = [Candidate(path, backend, cores) for path in paths]
        tables.append(_repeated(sides, images_used, folder / "repeat", modes.repeat, batch, seconds))
    return tables


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
        if file.is_dir():
            found = [file / f"{role}.onnx" for role in ("teacher", "student") if (file / f"{role}.onnx").exists()]
            if not found:
                raise InputError(f"{file} holds no teacher.onnx or student.onnx.", "Give ONNX files or a finished run.")
            paths += found
        else:
            paths.append(file)
    return paths


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


def _batches(data: ImageData, preprocessing: Preprocessing) -> Any:
    dataset = ViewDataset(data.val, preprocessing, "none", 0)
    for sample in plain_loader(dataset, batch_size=64, workers=auto_workers(data)):
        yield np.asarray(sample.image), np.asarray(sample.target)


def _table(names: dict[str, Path], accuracy: dict[str, Any], run: Any, folder: Path) -> Table:
    table = _empty("accuracy", "median ms", "95 %", "p99", "calls", "against the first")
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


def _parts(latency: dict[str, Latency]) -> list[Table]:
    """Where the time of a call went, for the sessions that tell."""
    told = {name: found for name, found in latency.items() if found.parts}
    if not told:
        return []
    table = _empty(*(f"{part} ms" for part in PARTS), "whole call ms")
    for name, found in told.items():
        medians = [f"{found.parts[part].median.value:.3f}" if part in found.parts else "-" for part in PARTS]
        table.add_row(name, *medians, f"{found.median.value:.3f}")
    table.caption = "medians of the parts of a call: to the device, computing, from the device, enqueueing"
    return [table]


def _throughput(
    sessions: dict[str, Session], images: Any, folder: Path, batch: int, streams: int, seconds: float
) -> Table:
    table = _empty("images/s", "95 %", "streams", "batch")
    for name, session in sessions.items():
        trace = folder / f"throughput-{name}.npz"
        found = measure_throughput(session, images, trace=trace, batch=batch, streams=streams, seconds=seconds)
        rate = found.images_per_second
        table.add_row(name, f"{rate.value:.1f}", f"{rate.low:.1f} - {rate.high:.1f}", str(streams), str(batch))
    table.caption = "throughput: requests overlap, so these are no latencies"
    return table


def _publishable(sessions: dict[str, Session], images: Any, folder: Path, seconds: float) -> Table:
    table = _empty("single stream p90, ms", f"multi-stream of {MULTI_STREAM_SAMPLES} p99, ms", "seconds each")
    for name, session in sessions.items():
        found = measure_publishable(session, images, folder=folder / f"publishable-{name}", seconds=seconds)
        table.add_row(
            name, f"{found.single_stream.p90.value:.3f}", f"{found.multi_stream.p99.value:.3f}", f"{seconds:g}"
        )
    return table


def _repeated(sides: list[Candidate], images: Any, folder: Path, processes: int, batch: int, seconds: float) -> Table:
    first, second = sides
    found = repeat_ratio(first, second, images, folder=folder, processes=processes, batch=batch, seconds=seconds)
    table = _empty("ratio of medians", "95 % over processes", "processes")
    ratio = found.ratio
    table.add_row(
        f"{sides[0].path.stem} / {sides[1].path.stem}",
        f"{ratio.value:.2f} x",
        f"{ratio.low:.2f} - {ratio.high:.2f}",
        str(processes),
    )
    table.caption = "; ".join(found.warnings) or None
    return table


def _empty(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    return table
