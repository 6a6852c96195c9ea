"""What spinning threads cost a training on a processor: alone, and beside a process that keeps one core busy.

Training steps of a student, each sample in a process of its own, since OpenMP reads its settings once; with the
library's own spinning and with ours (`compress/host_threads.py`), in rotating order.  The mean counts and not the
median: a step that waits for a core is what it is about.

    python benchmarks/busy_machine.py [--students mobilenetv2_100 ...] [--size 64] [--batch 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from iekd.compress.host_threads import SPINS

SETTINGS: dict[str, dict[str, str]] = {"own": {}, "ours": {"GOMP_SPINCOUNT": str(SPINS)}}
"""``own``: the library's."""
WARM_UP = 3
_SPIN = "while True: pass"


def sample(student: str, arguments: argparse.Namespace) -> float:
    """Mean of this process's training steps, milliseconds."""
    import torch

    from iekd.models.registry import build, resolve

    torch.set_num_threads(arguments.threads)
    network = build(resolve(student), 10, arguments.size).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (arguments.batch,))
    took = []
    for _ in range(WARM_UP + arguments.steps):
        start = time.perf_counter()
        torch.autograd.backward(torch.nn.functional.cross_entropy(network(images), targets))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.fmean(took[WARM_UP:])


@contextlib.contextmanager
def other_work(there: bool) -> Iterator[None]:
    """A process that keeps one core busy meanwhile, or none."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN]) if there else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def sampled_apart(student: str, setting: dict[str, str], arguments: argparse.Namespace) -> float:
    """:func:`sample` in a fresh process."""
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    names = ("size", "batch", "steps", "threads")
    flags = [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, __file__, "--sample", student, *flags]
    return float(subprocess.run(command, env=clean | setting, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compare(student: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Prints the student's row; ours / the library's own, alone and beside other work."""
    ratios = []
    for busy in (False, True):
        samples: dict[str, list[float]] = {name: [] for name in SETTINGS}
        with other_work(busy):
            for round_ in range(arguments.rounds):
                names = list(SETTINGS) if round_ % 2 else list(SETTINGS)[::-1]
                for name in names:
                    samples[name].append(sampled_apart(student, SETTINGS[name], arguments))
        median = {name: statistics.median(values) for name, values in samples.items()}
        spread = {name: f"{median[name]:.0f} [{min(took):.0f}, {max(took):.0f}]" for name, took in samples.items()}
        ratios.append(median["ours"] / median["own"])
        where = "beside a busy process" if busy else "alone"
        print(f"{student}, {where}: {spread['own']} ms by the library's own, {spread['ours']} ms by ours")
    return ratios[0], ratios[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["mobilenetv2_100", "cifar_resnet20", "resnet50"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sample:
        print(sample(arguments.sample, arguments))
        return
    found = [compare(student, arguments) for student in arguments.students]
    alone, busy = (max(values) for values in zip(*found, strict=True))
    print(f"RESULT worst_alone={alone:.3f} worst_busy={busy:.3f}")


if __name__ == "__main__":
    main()
