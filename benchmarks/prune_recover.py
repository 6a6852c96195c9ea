"""What each way of training does for a pruned student: accuracy against measured latency.

A student is distilled from a teacher once.  Then it is pruned to 30, 50 and 70 % fewer MACs, and every pruned network
is trained again in three ways, with the same epochs, seed and learning rate: IE-KD from the teacher, KD from the
teacher, and the labels alone.  With --steps above 1 the same MACs are reached in several prunings, each followed by its
share of the epochs.  Accuracy is that of the exported files; latency is measured at the end, all files interleaved in
one run.

The folder keeps everything: started again, the command goes on where it stopped.

    python benchmarks/prune_recover.py runs/prune [--teacher resnet18] [--student mobilenetv2_100] [--epochs 8]
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iekd import __version__, run
from iekd.compress.prune import SCOPES, Macs, prune_artefact
from iekd.compress.pruning.criteria import CRITERIA
from iekd.deploy.backends import get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.results import Report
from iekd.errors import InputError
from iekd.files import atomic_file
from iekd.models.checkpoint import read_description

RECOVERIES = {"ie-kd": "ie-ft+kd", "kd": "kd", "fine-tuning": "ce"}


@dataclass(frozen=True)
class Outcome:
    """One recovered network."""

    fewer: float
    recovery: str
    folder: Path
    report: Report


def main() -> None:
    arguments = read_arguments()
    root: Path = arguments.folder
    common = {
        "data": arguments.data,
        "image_size": arguments.size,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "train_limit": arguments.train_limit,
        "val_limit": arguments.val_limit,
        "bench_seconds": 0.5,  # within a run it is compared with the teacher alone; the table's is measured at the end
        "min_retained": 0.01,
    }
    base = run(arguments.teacher, arguments.student, out=str(root / "base"), epochs=arguments.base_epochs, **common)
    print(f"unpruned   {base.student.accuracy.top1.value:.2%} at {base.student.macs / 1e6:.1f} M MACs", flush=True)
    outcomes = []
    for outcome in _recover(arguments, common):
        student = outcome.report.student
        print(
            f"{outcome.fewer:.0%} fewer  {outcome.recovery:12} {student.accuracy.top1.value:.2%} "
            f"at {student.macs / 1e6:.1f} M MACs",
            flush=True,
        )
        outcomes.append(outcome)
    _finish(root, base, outcomes, arguments)


def _recover(arguments: argparse.Namespace, common: dict[str, object]) -> Iterator[Outcome]:
    """Each goal with each recovery, in ``steps`` prunings of equal shares."""
    root: Path = arguments.folder
    for fewer in arguments.fewer:
        share = 1 - (1 - fewer) ** (1 / arguments.steps)
        for recovery, objective in RECOVERIES.items():
            student, report = root / "base" / "student", None
            for step in range(1, arguments.steps + 1):
                pruned = root / f"pruned-{fewer:.0%}-{recovery}-{step}"
                prune_once(student, pruned, share, arguments)
                folder = root / f"recovered-{fewer:.0%}-{recovery}-{step}"
                report = run(
                    str(root / "base" / "teacher"),
                    str(pruned),
                    out=str(folder),
                    objective=objective,
                    epochs=max(1, arguments.epochs // arguments.steps),
                    lr=arguments.lr,
                    **{**common, "train_limit": arguments.recovery_limit or arguments.train_limit},
                )
                student = folder / "student"
            assert report is not None
            yield Outcome(fewer, recovery, folder, report)


def prune_once(source: Path, target: Path, share: float, arguments: argparse.Namespace) -> None:
    """Prune into ``target``, unless an earlier start did; one that pruned otherwise is refused."""
    how = {name: getattr(arguments, name) for name in ("criterion", "scope", "round_to")}
    if not (target / "model.json").is_file():
        prune_artefact(source, target, goal=Macs(share), **how)
        return
    done = read_description(target)["facts"]["pruning"][-1]
    asked = {**how, "goal": {"fewer_macs": share}}
    if other := [name for name, value in asked.items() if done[name] != value]:
        name = other[0]
        raise InputError(
            f"{target} was pruned otherwise: its {name} was {done[name]} and is {asked[name]}.",
            "Give another folder, or the settings of then.",
        )


def _finish(root: Path, base: Report, outcomes: list[Outcome], arguments: argparse.Namespace) -> None:
    """Measure all files in one run, write the table, and say what it shows."""
    files = {"unpruned": root / "base" / "student.onnx"}
    files.update({f"{o.fewer:.0%}-{o.recovery}": o.folder / "student.onnx" for o in outcomes})
    runtime = get_backend("onnxruntime")
    sessions = {name: runtime.load(file, threads=arguments.threads) for name, file in files.items()}
    shape = next(iter(sessions.values())).input_shape
    noise = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    measured = measure_latency(sessions, noise, folder=root / "latency", seconds=arguments.bench_seconds)
    machine = fingerprint(arguments.threads)
    rows = []
    for name, report, fewer, recovery in [
        ("unpruned", base, 0.0, "none"),
        *((f"{o.fewer:.0%}-{o.recovery}", o.report, o.fewer, o.recovery) for o in outcomes),
    ]:
        student, speedup = report.student, measured.ratio("unpruned", name)
        rows.append(
            {
                "fewer_macs": fewer,
                "recovery": recovery,
                "accuracy": round(student.accuracy.top1.value, 5),
                "accuracy_low": round(student.accuracy.top1.low, 5),
                "accuracy_high": round(student.accuracy.top1.high, 5),
                "milliseconds": round(measured.latency[name].median.value, 5),
                "speedup": round(speedup.value, 3),
                "speedup_low": round(speedup.low, 3),
                "speedup_high": round(speedup.high, 3),
                "macs": student.macs,
                "parameters": student.parameters,
                "seed": arguments.seed,
                "data": base.dataset.name,
                "device": machine.device,
                "threads": arguments.threads,
                "version": __version__,
            }
        )
    with atomic_file(root / "prune_recover.csv") as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("\n| fewer MACs | recovery | accuracy | ms | times faster | MACs (M) | parameters (M) |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        faster = f"{row['speedup']:.2f}" if row["speedup_low"] > 1 or not row["fewer_macs"] else "not faster"
        print(
            f"| {row['fewer_macs']:.0%} | {row['recovery']} | {row['accuracy']:.2%} | {row['milliseconds']:.3f} | "
            f"{faster} | {row['macs'] / 1e6:.1f} | {row['parameters'] / 1e6:.2f} |"
        )
    mean = {name: float(np.mean([row["accuracy"] for row in rows if row["recovery"] == name])) for name in RECOVERIES}
    print(
        f"RESULT iekd_over_kd={100 * (mean['ie-kd'] - mean['kd']):+.2f} "
        f"iekd_over_fine_tuning={100 * (mean['ie-kd'] - mean['fine-tuning']):+.2f}"
    )


def read_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything is kept; the same folder resumes")
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--student", default="mobilenetv2_100")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--fewer", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--base-epochs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8, help="of every recovery, all steps together")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    criteria = [name for name in CRITERIA if name != "taylor"]
    parser.add_argument("--criterion", default="group-norm", choices=criteria, help="taylor is none: it needs batches")
    parser.add_argument("--scope", default="uniform", choices=SCOPES)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bench-seconds", type=float, default=3.0)
    parser.add_argument("--train-limit", type=int, default=None)
    parser.add_argument("--recovery-limit", type=int, help="training images of every recovery, where fewer than before")
    parser.add_argument("--val-limit", type=int, default=None)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
