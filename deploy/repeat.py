"""Figures for publication: a ratio repeated in fresh processes, and MLPerf's two long single-device figures.

Within one process two models share one memory layout, one thread placement and one set of chosen kernels; the interval
over its blocks cannot see what another start would have drawn.  So a claimed ratio is measured again in fresh
processes, the order of the two changing from one to the next, and the spread over the processes makes the interval.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.results import Interval, Publishable, RepeatedRatio
from iekd.deploy.statistics import mean_ratio
from iekd.errors import EnvironmentMissingError, IekdError, InputError
from iekd.files import atomic_file, write_json

MLPERF_SECONDS = 600.0
"""MLPerf Inference rules, minimum duration of every performance run."""
MULTI_STREAM_SAMPLES = 8
"""MLPerf Inference rules, samples of one multi-stream query."""


@dataclass(frozen=True)
class Candidate:
    """One side of a ratio: a file and what opens it."""

    path: Path
    backend: str = "onnxruntime"
    threads: int = 0

    def open(self, batch: int = 1) -> Session:
        """A session of it that takes ``batch`` images a call."""
        return get_backend(self.backend).load(self.path, threads=self.threads, batch=batch)


def require_several(processes: int) -> None:
    """Raise InputError unless a ratio can be repeated in so many processes."""
    if processes < 2:
        raise InputError("a repetition needs two processes or more.", "Five are usual.")


def repeat_ratio(
    slow: Candidate,
    fast: Candidate,
    images: Array,
    *,
    folder: Path,
    processes: int = 5,
    seconds: float = 3.0,
    batch: int = 1,
    progress: Callable[[float], None] = lambda _share: None,
) -> RepeatedRatio:
    """Median of ``slow`` / median of ``fast``, measured interleaved in each of ``processes`` fresh processes.

    Args:
        slow: the numerator.
        fast: the denominator.
        images: real, preprocessed inputs (N, 3, H, W) that both take; N >= ``batch``.
        folder: for ``repeat.json`` and one folder of raw traces a process.
        processes: at least two.
        seconds: of measured calls for each side in each process.
        batch: images a call.
        progress: told the share that is done, 0..1.

    Raises:
        InputError: fewer than two processes, or a file that cannot be measured.
    """
    require_several(processes)
    inputs = folder / "images.npy"
    with atomic_file(inputs) as temporary, open(temporary, "wb") as handle:
        np.save(handle, images)
    runs = []
    for number in range(processes):
        sides = {"slow": _plain(slow), "fast": _plain(fast)}
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        task = {
            "sides": {name: sides[name] for name in order},
            "images": str(inputs),
            "seconds": seconds,
            "batch": batch,
            "folder": str(folder / f"process-{number}"),
        }
        runs.append(_in_fresh_process(task))
        progress((number + 1) / processes)
    inputs.unlink()
    found = combine([Interval(**run["ratio"]) for run in runs], [(run["slow"], run["fast"]) for run in runs])
    write_json(folder / "repeat.json", found.model_dump())
    return found


def combine(runs: Sequence[Interval], medians: Sequence[tuple[float, float]]) -> RepeatedRatio:
    """What separate processes found, as one figure; warns where they contradict one another."""
    apart = max(run.low for run in runs) > min(run.high for run in runs)
    warnings = [
        "the processes contradict one another: no ratio lies in all their intervals, so the interval of a single "
        "run would have been too narrow"
    ]
    return RepeatedRatio(
        ratio=mean_ratio(np.array([run.value for run in runs])),
        runs=list(runs),
        medians=list(medians),
        warnings=warnings if apart else [],
    )


def measure_publishable(
    session: Session,
    images: Array,
    *,
    folder: Path,
    seconds: float = MLPERF_SECONDS,
    progress: Callable[[float], None] = lambda _share: None,
) -> Publishable:
    """MLPerf's single-stream p90 and multi-stream p99, back to back without pauses.

    A multi-stream query is :data:`MULTI_STREAM_SAMPLES` samples in one call; the next is made when it is answered.

    Args:
        session: must take batches of one and of :data:`MULTI_STREAM_SAMPLES`.
        images: at least as many.
        folder: for the raw traces and ``publishable.json``.
        seconds: of each of the two; less than :data:`MLPERF_SECONDS` is a rehearsal, and the record says so.
        progress: told the share that is done, 0..1.
    """
    if len(images) < MULTI_STREAM_SAMPLES:
        raise InputError(f"{len(images)} images are too few.", f"Give at least {MULTI_STREAM_SAMPLES}.")
    latencies = []
    for step, (name, batch) in enumerate((("single-stream", 1), ("multi-stream", MULTI_STREAM_SAMPLES))):
        run = measure_latency(
            {name: session},
            images,
            folder=folder,
            batch=batch,
            seconds=seconds,
            progress=lambda share, step=step: progress((step + share) / 2),  # type: ignore[misc]
        )
        latencies.append(run.latency[name])
    found = Publishable(seconds=seconds, single_stream=latencies[0], multi_stream=latencies[1])
    write_json(folder / "publishable.json", found.model_dump())
    return found


def _plain(side: Candidate) -> dict[str, Any]:
    return {**asdict(side), "path": str(side.path.absolute())}


def _in_fresh_process(task: dict[str, Any]) -> dict[str, Any]:
    folder = Path(task["folder"])
    write_json(folder / "task.json", task)
    command = [sys.executable, "-m", "iekd.deploy.repeat", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == IekdError.exit_code:
        message, _, hint = result.stderr.strip().rpartition("\n")[2].partition("  ")
        raise InputError(message, hint)
    if result.returncode != 0:
        last = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
        raise EnvironmentMissingError(
            f"a measuring process failed: {last}", f"Run `{' '.join(command)}` to see it all."
        )
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return answer


def _work(folder: Path) -> None:
    """In the fresh process: measure what ``task.json`` says, write ``answer.json``."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    sessions = {
        name: Candidate(Path(side["path"]), side["backend"], side["threads"]).open(task["batch"])
        for name, side in task["sides"].items()
    }
    run = measure_latency(
        sessions, np.load(task["images"]), folder=folder, batch=task["batch"], seconds=task["seconds"]
    )
    answer: dict[str, Any] = {"ratio": run.ratio("slow", "fast").model_dump()}
    answer.update({name: latency.median.value for name, latency in run.latency.items()})
    write_json(folder / "answer.json", answer)


if __name__ == "__main__":
    try:
        _work(Path(sys.argv[1]))
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads it
        sys.exit(IekdError.exit_code)
