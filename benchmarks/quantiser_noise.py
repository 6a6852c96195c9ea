"""How far apart files of *one* quantiser lie that differ in nothing but the images that calibrate: what a mark can ask.

`benchmarks/quantisers.py` holds ours against the most accurate of five libraries, by the points of accuracy that each
lost.  Of five files that are equally good one is ahead by luck.  Here all files are our own: one recipe, one
calibration, as many seeds of the calibration's images as asked.  Each in turn plays ours, five of the others the
libraries: what ours then lacks of the best of them, in the mean over all choices, no quantiser can fall below.

    python benchmarks/quantiser_noise.py RUN [--recipes ort-u8s7 nncf] [--seeds 6] [--data folder:cifar10]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quantiser_table import points_behind
from quantisers import Images

from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.quantizers import SCHEMES
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import get_backend
from iekd.errors import IekdError
from iekd.files import write_json

RIVALS = 5
SCHEME_OF = {"ort-u8s7": "int8-x86-onnxruntime", "nncf": "int8-openvino"}
JUDGED = 64
"""Images that quantize() is given to judge by: with one recipe and one calibration there is nothing to choose."""


def right_answers(file: Path, backend: str, data: Images, threads: int) -> NDArray[np.bool_]:
    """Which validation images the file answers rightly."""
    session = get_backend(backend).load(file, threads=threads)
    images, labels = data.val
    batches = ((images[at : at + 1], labels[at : at + 1]) for at in range(len(images)))
    right: NDArray[np.bool_] = measure_accuracy(session, batches, data.classes)[1]
    return right


def of_recipe(recipe: str, data: Images, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of one recipe's files, and what the luckiest of five has over another."""
    scheme = SCHEMES[SCHEME_OF[recipe]]
    right = []
    for seed in range(arguments.seeds):
        settings = QuantizeSettings(
            calibration_images=arguments.calibration_images,
            seed=seed,
            recipes=(recipe,),
            methods=(arguments.method,),
            max_drop=None,
            threads=arguments.threads,
            latency_seconds=0.1,
        )
        result = quantize(
            arguments.run / "student.onnx",
            arguments.out / f"{recipe}-{seed}.onnx",
            scheme=SCHEME_OF[recipe],
            images=data.train[0],
            labels=data.train[1],
            held_out=(data.held_out[0][:JUDGED], data.held_out[1][:JUDGED]),
            settings=settings,
        )
        right.append(right_answers(result.file, scheme.backend, data, arguments.threads))
    float32 = right_answers(arguments.run / "student.onnx", scheme.backend, data, arguments.threads)
    top1 = [100 * float(answers.mean()) for answers in right]
    pairs = [points_behind(a, b) for a, b in itertools.combinations(right, 2)]
    return {
        "recipe": recipe,
        "images": len(float32),
        "float32": 100 * float(float32.mean()),
        "top1": top1,
        "lost": [100 * float(float32.mean()) - value for value in top1],
        "paired_half_width": float(np.mean([(pair.high - pair.low) / 2 for pair in pairs])),
        "luckiest": luckiest(top1),
    }


def luckiest(top1: list[float]) -> float:
    """Points that one file lacks of the best of RIVALS others, in the mean over all choices."""
    lacks = [
        max(rivals) - mine
        for at, mine in enumerate(top1)
        for rivals in itertools.combinations(top1[:at] + top1[at + 1 :], min(RIVALS, len(top1) - 1))
    ]
    return float(np.mean(lacks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with student.onnx")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipes", nargs="+", default=list(SCHEME_OF), choices=SCHEME_OF)
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--seeds", type=int, default=RIVALS + 1)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/quantiser-noise"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        data = Images(arguments.data, arguments.run, 0)
        found = [of_recipe(recipe, data, arguments) for recipe in arguments.recipes]
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    write_json(arguments.out / "noise.json", {"run": str(arguments.run), "recipes": found})
    for row in found:
        values = ", ".join(f"{value:.2f}" for value in row["top1"])
        print(
            f"{row['recipe']}: float32 {row['float32']:.2f} %, files {values} % of {row['images']} images; two of them "
            f"differ by 0 +- {row['paired_half_width']:.2f} (95 %); the best of five others is {row['luckiest']:.2f} "
            "points ahead"
        )
    print(f"RESULT luckiest_of_five={max(row['luckiest'] for row in found):.2f}")


if __name__ == "__main__":
    main()
