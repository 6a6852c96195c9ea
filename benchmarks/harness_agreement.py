"""Does our latency agree with an independent tool's?  OpenVINO's own benchmark_app on the same ONNX file.

A round is a fresh process of each on the same cores: same threads, one stream, batch 1, float32, synchronous calls.
They begin to measure together and take turns: one is stopped while the other runs, in slices of a fifth of a second,
because a shared machine changes its speed from second to second by more than is to be shown.  Calls that a stop falls
into are as many on both sides.

benchmark_app reports OpenVINO's clock of a request whose input is filled already.  Like for like is our ``compute``,
the same clock read by our harness; our headline, the host's wall clock, also holds handing over the image, copying the
logits and the Python binding, and is printed beside it.  The figure is the median over the rounds of (our median - its
median) / its median, with a bootstrap interval over the rounds; the mark is 2 %.  Rounds in which other processes or
the hypervisor took more than a tenth of a core are printed but do not count, and without a quiet round there is no
result.  Exit status: 0 within the mark, 1 beyond it or without a result.

    python benchmarks/harness_agreement.py [--model mobilenetv2_100] [--size 224] [--threads 1] [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from iekd.deploy.backends import get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.conditions import BUSY_CORES, Monitor
from iekd.deploy.fingerprint import fingerprint

MARK = 2.0
SLICE_SECONDS = 0.2


def export(name: str, size: int, folder: Path) -> Path:
    import timm
    import torch

    from iekd.deploy.export import export_onnx
    from iekd.models.preprocessing import Preprocessing

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=10)
    how = Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0)
    return export_onnx(
        network, folder / f"{name}.onnx", preprocessing=how, classes=[str(n) for n in range(10)], name=name
    )


def start_ours(file: Path, options: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    """Our harness in a fresh process, this script with ``--worker``; stopped, ready to measure."""
    settings = ["--threads", str(options.threads), "--seconds", str(options.seconds), "--folder", str(folder)]
    process = subprocess.Popen([sys.executable, __file__, "--worker", str(file), *settings], text=True)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return process


def measure_ours(file: Path, options: argparse.Namespace) -> None:
    """In the fresh process."""
    session = get_backend("openvino").load(file, threads=options.threads)
    images = np.random.default_rng(0).standard_normal((1, *session.input_shape), dtype=np.float32)
    session.run(images)
    os.kill(os.getpid(), signal.SIGSTOP)
    latency = measure_latency({"ours": session}, images, folder=options.folder, seconds=options.seconds).latency["ours"]
    compute = latency.parts["compute"]
    found = {"median": compute.median.value, "minimum": compute.minimum, "wall": latency.median.value}
    (options.folder / "ours.json").write_text(json.dumps(found))


def start_theirs(file: Path, options: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    """benchmark_app; stopped, when its first inference is over.

    It refuses a number of threads together with a performance hint; one stream, which is what the hint ``latency``
    gives, is asked for by name instead.  It would turn image inputs into 8-bit ones unless told ``-ip f32``.
    """
    tool = shutil.which("benchmark_app") or str(Path(sys.executable).with_name("benchmark_app"))
    shape = f"[1,3,{options.size},{options.size}]"
    settings = f"-hint none -api sync -nstreams 1 -infer_precision f32 -ip f32 -shape {shape}".split()
    command = [tool, "-m", str(file), "-d", "CPU", "-nthreads", str(options.threads), *settings]
    command += ["-t", str(max(1, round(options.seconds))), "-report_type", "no_counters", "-report_folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not any("First inference took" in line for line in process.stdout):
        sys.exit(f"benchmark_app did not begin: {' '.join(command)}")
    process.send_signal(signal.SIGSTOP)
    return process


def read_theirs(folder: Path) -> dict[str, float]:
    rows = [line.partition(";") for line in (folder / "benchmark_report.csv").read_text().splitlines()]
    values = {name: value for name, _, value in rows}
    median = float(values["latency (ms)"])
    return {"median": median, "minimum": float(values["min latency"]), "wall": median}


def take_turns(stopped: list[subprocess.Popen[str]]) -> None:
    """Let processes run to their end, one at a time in slices."""
    while stopped:
        process = stopped.pop(0)
        process.send_signal(signal.SIGCONT)
        try:
            code = process.wait(SLICE_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGSTOP)
            stopped.append(process)
            continue
        if code:
            for other in stopped:
                other.kill()
            sys.exit(f"{process.args!r} ended with exit code {code}")


def one_round(file: Path, options: argparse.Namespace, folder: Path, number: int) -> dict[str, dict[str, float]]:
    """Both tools' figures, milliseconds, and the cores that others took meanwhile."""
    monitor, begun, before = Monitor(), time.monotonic(), os.times()
    both = [start_ours(file, options, folder), start_theirs(file, options, folder)]
    take_turns(both if number % 2 == 0 else both[::-1])
    after, found = os.times(), monitor.summary()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    taken = (found.other_cpu or 0.0) + (found.steal or 0.0) - children / (time.monotonic() - begun)
    ours = json.loads((folder / "ours.json").read_text())
    return {"ours": ours, "theirs": read_theirs(folder), "others": {"cores": max(0.0, taken)}}


def percent(one: float, other: float) -> float:
    return 100 * (one / other - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        measure_ours(options.worker, options)
        return
    machine = fingerprint(options.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # both sides inherit it
    print(f"{options.model} {options.size} x {options.size}, {options.threads} thread(s), batch 1, float32")
    print(f"{machine.device}, {machine.cores} cores, OpenVINO {machine.packages.get('openvino')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        difference = report(compare(export(options.model, options.size, folder), options, folder))
    sys.exit(0 if abs(difference) <= MARK else 1)


def compare(file: Path, options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """The quiet rounds: differences of medians, of minima and of our headline, percent."""
    quiet = []
    for number in range(options.rounds):
        found = one_round(file, options, folder, number)
        ours, theirs, taken = found["ours"], found["theirs"], found["others"]["cores"]
        row = {name: percent(ours[name], theirs[name]) for name in ours}
        if taken <= BUSY_CORES:
            quiet.append(row)
        print(
            f"round {number}: compute {ours['median']:8.3f} ms, benchmark_app {theirs['median']:8.3f} ms, "
            f"{row['median']:+6.2f} %; minimum {row['minimum']:+6.2f} %; headline {row['wall']:+6.2f} %; "
            f"others took {taken:.2f} cores",
            flush=True,
        )
    return quiet


def report(quiet: list[dict[str, float]]) -> float:
    """Print the rounds together; returns the difference of the medians of compute, percent."""
    if not quiet:
        sys.exit("no quiet round: the machine was busy with other work throughout; run it again when it is not")
    print(f"{len(quiet)} quiet rounds; median [95 % over the rounds], and the single rounds' range:")
    middles = {}
    for name, words in (("wall", "headline"), ("minimum", "compute, minima"), ("median", "compute, medians")):
        values = np.array([row[name] for row in quiet])
        drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
        low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        middles[name] = float(np.median(values))
        span = f"{values.min():+.2f} to {values.max():+.2f}"
        print(f"  {words:17} {middles[name]:+6.2f} % [{low:+.2f}, {high:+.2f}], {span}")
    within = "kept" if abs(middles["median"]) <= MARK else "missed"
    print(f"the mark is {MARK:g} %, of the medians of compute: {within}")
    print(f"RESULT difference_percent={middles['median']:.2f}")
    return middles["median"]


if __name__ == "__main__":
    main()
