"""Does our latency agree with an independent tool's?  OpenVINO's own benchmark_app on the same ONNX file.

Both run in fresh processes that take turns (A B, B A, ...): same threads, one stream, batch 1, float32, synchronous
calls, the same length.  benchmark_app times the call of a request whose input is filled already; ours includes handing
over the images and copying the logits, which is what a user pays for.  The figure is the median over the rounds of
(our median - its median) / its median; the mark is 2 %.  On a machine that is busy otherwise it is noise: rounds in
which other processes used more than a tenth of a core are printed but do not count, and without a quiet round there is
no result.

    python benchmarks/harness_agreement.py [--model mobilenetv2_100] [--size 224] [--threads 1] [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch

from iekd.deploy.backends import get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.conditions import BUSY_CORES
from iekd.deploy.export import export_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.models.preprocessing import Preprocessing

MARK = 2.0


def export(name: str, size: int, folder: Path) -> Path:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=10)
    how = Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0)
    return export_onnx(
        network, folder / f"{name}.onnx", preprocessing=how, classes=[str(n) for n in range(10)], name=name
    )


def measure_ours(file: Path, threads: int, seconds: float, folder: Path) -> dict[str, float]:
    """In this process; called in a fresh one."""
    session = get_backend("openvino").load(file, threads=threads)
    images = np.random.default_rng(0).standard_normal((1, *session.input_shape), dtype=np.float32)
    latency = measure_latency({"ours": session}, images, folder=folder, seconds=seconds).latency["ours"]
    others = latency.conditions.other_cpu if latency.conditions else None
    return {"median": latency.median.value, "minimum": latency.minimum, "others": others or 0.0}


def ours(file: Path, threads: int, seconds: float, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", str(file), "--threads", str(threads), "--seconds", str(seconds)]
    answer = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def theirs(file: Path, threads: int, seconds: float, folder: Path) -> dict[str, float]:
    """benchmark_app's median and minimum, from the report that it writes.

    It refuses a number of threads together with a performance hint; one stream, which is what the hint ``latency``
    gives, is asked for by name instead.
    """
    tool = shutil.which("benchmark_app") or str(Path(sys.executable).with_name("benchmark_app"))
    session = get_backend("openvino").load(file, threads=threads)
    shape = ",".join(map(str, (1, *session.input_shape)))
    session.close()
    settings = f"-hint none -api sync -nstreams 1 -infer_precision f32 -ip f32 -shape [{shape}]".split()
    report = ["-report_type", "no_counters", "-report_folder", str(folder)]
    command = [tool, "-m", str(file), "-d", "CPU", "-nthreads", str(threads), "-t", str(max(1, round(seconds)))]
    subprocess.run([*command, *settings, *report], capture_output=True, text=True, check=True)
    rows = [line.partition(";") for line in (folder / "benchmark_report.csv").read_text().splitlines()]
    values = {name: value for name, _, value in rows}
    return {"median": float(values["latency (ms)"]), "minimum": float(values["min latency"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(measure_ours(options.worker, options.threads, options.seconds, options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(export(options.model, options.size, folder), options, folder)


def compare(file: Path, options: argparse.Namespace, folder: Path) -> None:
    machine = fingerprint(options.threads)
    print(f"{options.model} {options.size} x {options.size}, {options.threads} thread(s), batch 1, float32")
    print(f"{machine.device}, {machine.cores} cores, OpenVINO {machine.packages.get('openvino')}")
    tools = {"ours": ours, "theirs": theirs}
    medians, minima = [], []
    for number in range(options.rounds):
        order = list(tools) if number % 2 == 0 else list(tools)[::-1]
        found = {tool: tools[tool](file, options.threads, options.seconds, folder) for tool in order}
        median = 100 * (found["ours"]["median"] / found["theirs"]["median"] - 1)
        minimum = 100 * (found["ours"]["minimum"] / found["theirs"]["minimum"] - 1)
        if found["ours"]["others"] <= BUSY_CORES:
            medians.append(median)
            minima.append(minimum)
        print(
            f"round {number}: median ours {found['ours']['median']:8.3f} ms, benchmark_app "
            f"{found['theirs']['median']:8.3f} ms, {median:+6.2f} %; minimum {minimum:+6.2f} %; "
            f"others used {found['ours']['others']:.2f} cores",
            flush=True,
        )
    if not medians:
        sys.exit("no quiet round: the machine was busy with other work throughout; run it again when it is not")
    middle = float(np.median(medians))
    print(
        f"median of {len(medians)} quiet rounds: medians {middle:+.2f} %, minima {np.median(minima):+.2f} %; "
        f"the mark is {MARK:g} %"
    )
    print(f"RESULT difference_percent={middle:.2f}")


if __name__ == "__main__":
    main()
