"""Pruning with a measured latency as the goal, against the clock: was the limit met when measured again?

Each student, untrained, is pruned until its file takes a share of what the whole one's takes.  What the pruning saw
while it looked for the smallest cut is one figure; another comes from a run afterwards, in which the whole and the
pruned files of a student are interleaved.  Their MACs say what counting would have promised.

    python benchmarks/prune_latency.py [--students mobilenetv2_100 resnet18 ...] [--shares 0.7 0.5] [--size 96]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from iekd.compress.prune import prune
from iekd.compress.pruning.goals import LatencyShare
from iekd.compress.pruning.latency import latency_beside, measure_networks
from iekd.errors import IekdError, InputError
from iekd.models.registry import build, resolve

CLASSES = 10


def of_student(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What pruning to each share of the latency came to."""
    how = {"image_size": arguments.size, "classes": CLASSES, "threads": arguments.threads, "seconds": arguments.seconds}
    torch.manual_seed(0)
    whole = build(resolve(name), CLASSES, arguments.size).eval()
    measure = latency_beside(whole, **how)
    pruned = {}
    for share in arguments.shares:
        goal = LatencyShare(share, measure)
        try:
            pruned[share] = prune(whole, image_size=arguments.size, goal=goal, scope=arguments.scope)
        except InputError as error:  # a result too: what is left is not the channels' time
            print(f"{name}, {share:g} of its latency: {error}")
    again = measure_networks({"whole": whole, **{str(share): pruned[share].network for share in pruned}}, **how)
    return [
        {
            "student": name,
            "share": share,
            "seen": next(
                trial["figure"] for trial in found.history["trials"] if trial["ratio"] == found.history["ratio"]
            ),
            "again": 1 / again.ratio("whole", str(share)).value,
            "macs": found.macs_after / found.macs_before,
        }
        for share, found in pruned.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["mobilenetv2_100", "mobilenetv3_small_100", "resnet18"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.5], help="of the whole network's latency")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--scope", default="uniform")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="measured for each file")
    arguments = parser.parse_args()
    try:
        rows = [row for name in arguments.students for row in of_student(name, arguments)]
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print("| student | asked, of the latency | seen | again, of the whole's | MACs left |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        figures = (f"{row['seen']:.2f}", f"{row['again']:.2f}", f"{row['macs']:.2f}")
        print(f"| {row['student']} | {row['share']:g} | {' | '.join(figures)} |")
    print(f"RESULT worst_over_asked={max((row['again'] / row['share'] for row in rows), default=float('nan')):.2f}")


if __name__ == "__main__":
    main()
