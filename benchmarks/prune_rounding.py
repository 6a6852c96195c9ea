"""Pruned widths in multiples of 8, 16 or 32: what the same multiply-accumulates cost with each.

Each student, untrained, is pruned to a share of its MACs with widths rounded to each multiple; the whole and all of its
pruned networks are measured interleaved.  The last line has the geometric mean of what the second multiple takes of the
latency with the first, over students and shares; MACs left differ by what the rounding leaves, and are in the table.

    python benchmarks/prune_rounding.py [--students mobilenetv2_100 ...] [--backend openvino] [--size 64]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from iekd.compress.prune import Macs, PruneResult, prune
from iekd.compress.pruning.latency import measure_networks
from iekd.errors import IekdError, InputError
from iekd.models.registry import build, resolve

CLASSES = 10
STUDENTS = ("mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_050", "lcnet_050", "resnet18")


def of_student(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The pruned networks of one student, with latency and MACs as shares of the whole one's."""
    torch.manual_seed(0)
    whole = build(resolve(name), CLASSES, arguments.size).eval()
    pruned: dict[tuple[float, int], PruneResult] = {}
    for fewer in arguments.fewer:
        for multiple in arguments.multiples:
            try:
                found = prune(whole, image_size=arguments.size, goal=Macs(fewer), round_to=multiple)
            except InputError as error:  # a result too: the network is too narrow for it
                print(f"{name}, {fewer:g} fewer MACs in multiples of {multiple}: {error}", flush=True)
            else:
                pruned[fewer, multiple] = found
    names = {key: f"{key[0]:g}-{key[1]}" for key in pruned}
    run = measure_networks(
        {"whole": whole, **{names[key]: found.network for key, found in pruned.items()}},
        image_size=arguments.size,
        classes=CLASSES,
        backend=arguments.backend,
        threads=arguments.threads,
        seconds=arguments.seconds,
    )
    return [
        {
            "student": name,
            "fewer": key[0],
            "multiple": key[1],
            "latency": 1 / run.ratio("whole", names[key]).value,
            "macs": found.macs_after / found.macs_before,
            "parameters": found.parameters_after / found.parameters_before,
        }
        for key, found in pruned.items()
    ]


def second_over_first(rows: list[dict[str, Any]], multiples: list[int]) -> float:
    """Geometric mean of the latency in the second multiple over that in the first, where there are both."""
    first, second = (
        {(row["student"], row["fewer"]): row["latency"] for row in rows if row["multiple"] == multiple}
        for multiple in multiples[:2]
    )
    both = [second[key] / first[key] for key in first.keys() & second.keys()]
    return float(np.exp(np.mean(np.log(both)))) if both else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--fewer", nargs="+", type=float, default=[0.3, 0.5], help="share of the MACs to remove")
    parser.add_argument("--multiples", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="measured for each file")
    arguments = parser.parse_args()
    try:
        rows = [row for name in arguments.students for row in of_student(name, arguments)]
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print("| student | fewer MACs | multiples of | latency left | MACs left | parameters left |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        left = " | ".join(f"{row[what]:.3f}" for what in ("latency", "macs", "parameters"))
        print(f"| {row['student']} | {row['fewer']:g} | {row['multiple']} | {left} |")
    first, second = arguments.multiples[:2]
    print(f"RESULT latency_{second}_over_{first}={second_over_first(rows, arguments.multiples):.3f}")


if __name__ == "__main__":
    main()
