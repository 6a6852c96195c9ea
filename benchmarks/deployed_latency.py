"""How much faster is what ships?  The teacher's float32 file against the file that the search chooses.

    python benchmarks/deployed_latency.py                               # resnet50, digits, 64 x 64, CPU, 2 threads
    python benchmarks/deployed_latency.py --data folder:photos --size 224 --out runs/deployed-photos
    python benchmarks/deployed_latency.py --target openvino --out runs/deployed-openvino
    python benchmarks/deployed_latency.py --out runs/pruned -- --prunes 0,0.5 --trials 8    # flags of the search's own

First ``iekd-compress search`` runs as a user would call it: it trains one teacher, gives students of small widths a
short recovery and the best of them the full schedule, and chooses the fastest file that keeps 99 % of the teacher's
accuracy.  Then both files are opened, the teacher's by ONNX Runtime and the chosen one by its target's runtime, and
measured side by side in one run: accuracy on all validation images, latency at batch 1 with the same threads,
interleaved, at the same input size.

The choice is made on the images that the accuracy is reported on.  How lucky that makes it is measured too: chosen on
one half of the images, how much does the choice keep on the other half?

The command goes on where it stopped; given again after its end it measures again, and adds a row to
``deployed_latency.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from iekd.compress.config_input import make_config, read_config_file
from iekd.compress.job import open_data
from iekd.compress.targets import TARGETS
from iekd.compress.views import ViewDataset, auto_workers, plain_loader
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.export import read_metadata
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.results import Accuracy, Interval, Latency
from iekd.deploy.statistics import ratio_of_accuracies
from iekd.files import write_json

STUDENTS = ("lcnet_050", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_050")
SPEEDUP_MARK, RETAINED_MARK = 20.0, 0.99
LATENCY_IMAGES = 64
SPLITS = 1000
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """One file."""

    name: str
    file: Path
    accuracy: Accuracy
    latency: Latency
    backend: str


class Comparison(NamedTuple):
    """Teacher and chosen student, measured in one run."""

    teacher: Measured
    student: Measured
    speedup: Interval
    retained: Interval
    elsewhere: float
    """Share of the teacher's accuracy that the choice keeps on images that it was not chosen on."""


def main() -> None:
    options = _options()
    out: Path = options.out
    outcome = find_student(options, out)
    point = outcome["chosen"] or outcome["nearest_fast"]
    if point is None:
        sys.exit("the search trained no student that could be measured")
    found = compare(options, out, outcome, point)
    print(table(found, point))
    print(
        f"chosen on half of the images, the student keeps {found.elsewhere:.4f} on the other ({SPLITS} random splits)"
    )
    for name, value, mark in (
        ("speedup", found.speedup.value, SPEEDUP_MARK),
        ("retained", found.retained.value, RETAINED_MARK),
    ):
        print(f"{name} {value:.4g}, the mark is at least {mark:g}: {'kept' if value >= mark else 'MISSED'}")
    add_row(out / "deployed_latency.csv", row_of(found, options, out, point))
    print(f"RESULT speedup={found.speedup.value:.2f} retained={found.retained.value:.4f}")


def find_student(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What ``iekd-compress search`` finds; a search that this very command has finished is not done again."""
    command = [
        *(sys.executable, "-m", "iekd.compress.cli", "search", "--teacher", options.teacher),
        *("--student", options.students, "--data", options.data, "--image-size", str(options.size)),
        *("--target", options.target, "--threads", str(options.threads), "--seed", str(options.seed)),
        *("--min-retained", str(RETAINED_MARK), "--out", str(out / "search")),
        *(options.search or ("--prunes", "0", "--trials", "4", "--winners", "2")),
    ]
    kept = out / "search-finished.json"
    if not kept.is_file() or json.loads(kept.read_text(encoding="utf-8"))["command"] != command[1:]:
        start, before = time.perf_counter(), _processor_seconds()
        print("iekd-compress " + " ".join(command[3:]), flush=True)
        status = subprocess.run(command).returncode
        if status not in (0, 1):
            sys.exit(status)
        spent = {"wall": time.perf_counter() - start, "processor": _processor_seconds() - before}
        write_json(kept, {"command": command[1:], "seconds": spent})
    else:
        print(f"already searched: {out / 'search' / 'search.html'}", flush=True)
    found: dict[str, Any] = json.loads((out / "search" / "search.json").read_text(encoding="utf-8"))
    return found


def compare(options: argparse.Namespace, out: Path, outcome: dict[str, Any], point: dict[str, Any]) -> Comparison:
    """Open both files and measure them."""
    run = out / "search" / point["run"]
    files = {"teacher": run / "teacher.onnx", "student": run / point["file"]}
    config = make_config(read_config_file(run / "config.yaml"))
    backends = {"teacher": "onnxruntime", "student": TARGETS[config.target].backend}
    sessions = {role: get_backend(backends[role]).load(file, threads=options.threads) for role, file in files.items()}
    if sessions["teacher"].input_shape != sessions["student"].input_shape:
        sys.exit(f"inputs differ: {sessions['teacher'].input_shape} and {sessions['student'].input_shape}")
    data = open_data(config)
    dataset = ViewDataset(data.val, read_metadata(files["teacher"]).preprocessing, "none", config.seed)
    loader = plain_loader(dataset, batch_size=64, workers=auto_workers(data))
    batches = [(batch.image.numpy(), batch.target.numpy()) for batch in loader]
    accuracy, right = {}, {}
    for role, session in sessions.items():
        accuracy[role], right[role] = measure_accuracy(session, batches, data.classes)
    images = np.concatenate([images for images, _ in batches])
    chosen = images[np.linspace(0, len(images) - 1, min(LATENCY_IMAGES, len(images))).round().astype(int)]
    measured = measure_latency(sessions, chosen, folder=out / "latency", seconds=options.seconds)
    others = _answers(options, out, outcome, batches)
    teacher, student = (
        Measured(role, files[role], accuracy[role], measured.latency[role], _words(sessions[role])) for role in files
    )
    return Comparison(
        teacher,
        student,
        measured.ratio("teacher", "student"),
        ratio_of_accuracies(right["student"], right["teacher"]),
        kept_elsewhere(right["teacher"], others, [entry["latency"]["value"] for entry in outcome["points"]]),
    )


def _answers(
    options: argparse.Namespace, out: Path, outcome: dict[str, Any], batches: Sequence[tuple[Array, NDArray[np.int64]]]
) -> list[Right]:
    """Right or wrong on each validation image, of every file that the search could choose from."""
    found = []
    backend = get_backend(TARGETS[outcome["target"]].backend)
    for point in outcome["points"]:
        session = backend.load(out / "search" / point["run"] / point["file"], threads=options.threads)
        found.append(measure_accuracy(session, batches, ())[1])
        session.close()
    return found


def kept_elsewhere(
    teacher: Right, files: Sequence[Right], latencies: Sequence[float], limit: float = RETAINED_MARK
) -> float:
    """Share of the teacher's accuracy that the choice keeps on images that it was not chosen on.

    On one random half of the images the fastest file is taken that keeps ``limit`` there, or the most accurate where
    none does; on the other half it is counted what it keeps.  The mean over many halves.

    Args:
        teacher: right or wrong, an image each.
        files: the same, of each file.
        latencies: of each file.
        limit: least share of the teacher's accuracy.
    """
    random, speed = np.random.default_rng(0), np.array(latencies)
    answers, kept = np.stack(files), []
    for _ in range(SPLITS):
        order = random.permutation(len(teacher))
        here, there = order[: len(order) // 2], order[len(order) // 2 :]
        shares = answers[:, here].sum(1) / max(1, teacher[here].sum())
        good = np.flatnonzero(shares >= limit)
        choice = good[speed[good].argmin()] if len(good) else shares.argmax()
        kept.append(answers[choice, there].sum() / max(1, teacher[there].sum()))
    return float(np.mean(kept))


def table(found: Comparison, point: dict[str, Any]) -> str:
    """Both files side by side, as Markdown."""
    both = found.teacher, found.student
    sizes = [_size(one.file) / 1e6 for one in both]
    pruned = f", {point['prune']:.0%} pruned" if point["prune"] else ""
    total, kept, faster = found.teacher.accuracy.total, _digits(found.retained, 4), _digits(found.speedup, 1)
    rows = [
        ("", "teacher", f"{point['student']}{pruned}, {point['precision']}", ""),
        ("---", "---:", "---:", "---:"),
        (f"accuracy, {total} images", *(_digits(one.accuracy.top1, 4) for one in both), f"kept {kept}"),
        ("median latency, ms", *(_digits(one.latency.median, 3) for one in both), f"{faster} x"),
        ("99th percentile, ms", *(f"{one.latency.p99.value:.3f}" for one in both), ""),
        ("file, MB", *(f"{size:.2f}" for size in sizes), f"{sizes[0] / sizes[1]:.1f} x less"),
        ("runtime", *(one.backend for one in both), ""),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def row_of(found: Comparison, options: argparse.Namespace, out: Path, point: dict[str, Any]) -> dict[str, Any]:
    """The row of this measurement."""
    spent = json.loads((out / "search-finished.json").read_text(encoding="utf-8"))["seconds"]
    machine = fingerprint(options.threads)
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    figures = {
        f"{name}{end}": round(getattr(value, part), 5)
        for name, value in (
            ("speedup", found.speedup),
            ("retained", found.retained),
            ("teacher_top1", found.teacher.accuracy.top1),
            ("student_top1", found.student.accuracy.top1),
            ("teacher_ms", found.teacher.latency.median),
            ("student_ms", found.student.latency.median),
        )
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    return {
        "teacher": options.teacher,
        **{key: point[key] for key in ("student", "prune", "precision", "size", "phase")},
        "data": options.data,
        "images": found.teacher.accuracy.total,
        **figures,
        "kept_elsewhere": round(found.elsewhere, 5),
        "teacher_backend": found.teacher.backend,
        "student_backend": found.student.backend,
        "search_seconds": round(spent["wall"]),
        "search_processor_seconds": round(spent["processor"]),
        "seed": options.seed,
        "device": machine.device,
        "cores": machine.cores,
        "torch": torch.__version__,
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
    }


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append to the table, which begins with the names of its columns."""
    first = not path.exists()
    with open(path, "a", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(row))
        if first:
            writer.writeheader()
        writer.writerow(row)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--students", default=",".join(STUDENTS), help="as --student of iekd-compress search")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=64, help="height and width of both networks' input")
    parser.add_argument("--target", default="cpu", choices=[name for name, own in TARGETS.items() if not own.on_board])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured for each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/deployed-latency"))
    parser.add_argument("search", nargs="*", help="after --: flags of iekd-compress search, instead of this script's")
    return parser.parse_args()


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _digits(figure: Interval, digits: int) -> str:
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _size(file: Path) -> int:
    weights = file.with_suffix(".bin")  # OpenVINO's own format keeps them beside its .xml
    return file.stat().st_size + (weights.stat().st_size if file.suffix == ".xml" and weights.exists() else 0)


def _words(session: Session) -> str:
    return ", ".join(session.describe().values())


if __name__ == "__main__":
    main()
