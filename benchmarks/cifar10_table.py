r"""Does inheriting and exploring lift feature distillation?  Every method on CIFAR-10, one table.

    python benchmarks/cifar10_table.py --data folder:cifar10 --out runs/table                 # the paper's 160 epochs
    python benchmarks/cifar10_table.py --data folder:cifar10 --out runs/medium --recipe medium --lanes 40  # minutes
    python benchmarks/cifar10_table.py --data folder:cifar10 --out runs/quick --recipe short  # for a CPU
    python benchmarks/cifar10_table.py --data folder:cifar10 --out runs/second --teacher resnet50 \
        --student mobilenetv2_100 --size 64                                                   # the second pair

Every method sees the same images in the same order (a function of the seed) and views (the same for every seed), the
same number of epochs, one teacher, and its default weights, unless its row says otherwise: ``ie-ft@explore_form=cka``
is ``ie-ft`` with that setting, ``ie-ft+kd@tap=stages.1`` taps another stage of both networks.  Finished rows are kept,
so the same command goes on after a stop; rows that were made under other settings are refused.

A small network leaves a GPU idle: ``--lanes`` trains that many rows side by side in one process, each step a CUDA graph
and the teacher asked once an epoch for all of them; ``--jobs`` does it in several processes.  A row of lanes has its
likeness to the teacher written by ``--likeness`` afterwards, for which no GPU is needed.

A row needs the teacher's weights and nothing else of the folder: copy ``teacher/`` and ``rows/`` to another machine and
the table goes on there.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from paired import render, result_line
from resident import held_out, load_split
from table_bench import RECIPES, Bench
from table_cohort import run_side_by_side, score_unfinished, waits_for_host
from table_rows import Trained, check_row, likeness_of_kept, train_row
from table_settings import refuse_other_rows
from table_teacher import TeacherAnswers, at_tap, load_teacher, train_teacher

from iekd.deploy.fingerprint import fingerprint
from iekd.errors import IekdError, InputError
from iekd.files import write_json

TRANSFERS = ("at", "ft", "od", "vkd")
ROWS = (
    "ce",
    *("kd", "dkd", "dist", "lskd", "ats"),
    *TRANSFERS,
    *(f"ie-{name}" for name in TRANSFERS),
    *(f"{name}+kd" for name in TRANSFERS),
    *(f"ie-{name}+kd" for name in TRANSFERS),
    *("dml", "ie-dml", "switokd"),
)


def run_rows(bench: Bench) -> None:
    """Every row and seed that no result is there for and no other process has in hand."""
    teacher = functools.cache(lambda: train_teacher(bench))
    answers = functools.cache(lambda tap: TeacherAnswers(bench, at_tap(teacher(), tap, bench.train.size)))
    for seed in bench.arguments.seeds:
        for row in bench.arguments.rows:
            file = bench.folder / "rows" / f"{row}-{seed}.json"
            try:
                with FileLock(bench.folder / f"{row}-{seed}.lock", timeout=0):
                    if not file.exists():
                        start = time.perf_counter()
                        trained = train_row(bench, row, seed, answers)
                        keep(bench, file, row, seed, trained, time.perf_counter() - start)
            except Timeout:
                continue


def run_lanes(bench: Bench) -> None:
    """Every row and seed that no result is there for, side by side; what cannot be captured comes after them."""
    pairs = [(row, seed) for seed in bench.arguments.seeds for row in bench.arguments.rows]
    files = {pair: bench.folder / "rows" / f"{pair[0]}-{pair[1]}.json" for pair in pairs}
    todo = [pair for pair in pairs if not files[pair].exists() and not waits_for_host(bench, pair[0])]
    run_side_by_side(
        bench,
        todo,
        lambda row, seed, trained, seconds: keep(bench, files[row, seed], row, seed, trained, seconds),
    )
    run_rows(bench)


def add_likeness(bench: Bench) -> None:
    """CKA of the parts of every kept student, into its row."""
    teacher = load_teacher(bench)
    for weights in sorted((bench.folder / "students").glob("*.safetensors")):
        file = bench.folder / "rows" / f"{weights.stem}.json"
        found = json.loads(file.read_text())
        if "cka_exploration" not in found:
            likeness = likeness_of_kept(bench, teacher, found["row"], found["seed"], weights)
            write_json(file, {**found, **likeness})


def keep(bench: Bench, file: Path, row: str, seed: int, trained: Trained, seconds: float) -> None:
    """Measure and write one row's result; its checkpoint is not needed any more."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    top1 = bench.top1(trained.network)
    found = {
        "row": row,
        "seed": seed,
        "top1": round(top1, 3),
        **trained.facts,
        "epochs": bench.recipe.epochs,
        "recipe": bench.arguments.recipe,
        "settings": " ".join(bench.arguments.set),
        "made_under": bench.settings_of(row),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if bench.accelerator.device.type == "cuda" else fingerprint(1).device,
        "torch": torch.__version__,
        "commit": subprocess.run(command, capture_output=True, text=True).stdout.strip(),
    }
    write_json(file, found)
    print(f"{row:12} seed {seed}  top-1 {top1:.2f} %  {seconds:.0f} s  {trained.facts or ''}", flush=True)
    (bench.folder / "checkpoints" / f"{row}-{seed}" / "last.pt").unlink(missing_ok=True)


def summarize(folder: Path, order: tuple[str, ...], unfinished: dict[str, tuple[float, float]] | None = None) -> None:
    """``table.csv``, ``table.md`` and the last line.

    Args:
        folder: of the results.
        order: rows that come first, in this order.
        unfinished: epochs done and top-1 of rows and seeds that have no result, which then count and are named.
    """
    files = sorted((folder / "rows").glob("*.json"))
    found = [json.loads(path.read_text()) for path in files]
    done = {path.stem for path in files}
    unfinished = {name: score for name, score in (unfinished or {}).items() if name not in done}
    for name, (epochs, top1) in unfinished.items():
        row, _, seed = name.rpartition("-")
        found.append({"row": row, "seed": int(seed), "top1": round(top1, 3), "epochs": round(epochs, 1)})
    with (folder / "table.csv").open("w", newline="") as handle:
        columns = dict.fromkeys(key for entry in found for key in entry if key != "made_under")
        writer = csv.DictWriter(handle, list(columns), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    scores: dict[str, dict[int, float]] = {}
    for name in dict.fromkeys([*order, *(entry["row"] for entry in found)]):
        own = {entry["seed"]: entry["top1"] for entry in found if entry["row"] == name}
        if own:
            scores[name] = own
    told = folder / "teacher" / "teacher.json"
    table = render(scores, json.loads(told.read_text())["top1"] if told.exists() else None)
    if unfinished:
        cut = ", ".join(f"{name} ({epochs:g} epochs)" for name, (epochs, _) in unfinished.items())
        table += f"\nNot finished, scored as they stand: {cut}.\n"
    (folder / "table.md").write_text(table)
    print(table)
    print(result_line(scores) + (f" unfinished={len(unfinished)}" if unfinished else ""))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for iekd-compress")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; the same one resumes")
    parser.add_argument("--teacher", default="cifar_resnet56")
    parser.add_argument("--teacher-from", type=Path, help="a trained teacher, such as RUN/teacher, instead of training")
    parser.add_argument("--student", default="cifar_resnet20")
    parser.add_argument("--size", type=int, help="enlarge the images to that height and width (default: as they are)")
    parser.add_argument("--recipe", choices=RECIPES, default="paper")
    parser.add_argument("--epochs", type=int, help="of every row, instead of the recipe's")
    parser.add_argument("--teacher-epochs", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="judge rows by that many training images which no student is trained on, to choose among them "
        "(benchmarks/table_tuning.py); needs a teacher/ in --out",
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="objectives")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="settings of the objective, as name=value")
    parser.add_argument("--lanes", type=int, default=0, help="rows trained side by side in one process, on a GPU")
    parser.add_argument("--likeness", action="store_true", help="only say how like the teacher kept students are")
    parser.add_argument(
        "--unfinished", action="store_true", help="only score students as lanes that were cut kept them, and tabulate"
    )
    parser.add_argument("--jobs", type=int, default=1, help="rows trained side by side")
    parser.add_argument("--threads", type=int, default=0, help="of each job; 0: all")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    if given.lanes and given.jobs > 1:
        parser.error("--lanes trains in one process, --jobs in several: give one of them")
    return given


def main() -> None:
    given = arguments()
    try:
        run(given)
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(given: argparse.Namespace) -> None:
    """Train what is asked for and not there yet, and write the table."""
    for row in given.rows:  # before hours of training
        check_row(row, given)
    given.out.mkdir(parents=True, exist_ok=True)
    changes = {name: value for name in ("epochs", "teacher_epochs") if (value := getattr(given, name))}
    recipe = dataclasses.replace(RECIPES[given.recipe], **changes)
    refuse_other_rows(given, recipe)
    if given.held_out and not (given.out / "teacher" / "teacher.json").exists():
        raise InputError(
            f"--held-out judges by images that a teacher learns from, and {given.out} has no teacher/ of another run.",
            "Train the table's teacher first, and copy its folder.",
        )
    unfinished = None
    if given.jobs > 1:
        command = [sys.executable, *sys.argv, "--jobs", "1"]
        workers = [subprocess.Popen(command) for _ in range(given.jobs)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            sys.exit(1)
    else:
        if given.threads:
            torch.set_num_threads(given.threads)
        on_gpu = torch.cuda.is_available()
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision=given.precision)
        with FileLock(given.out / "data.lock"):
            limits = (recipe.train_limit, recipe.val_limit)
            train, val = load_split(given.data, given.out, *limits, accelerator.device, given.size)
            more = recipe.teacher_limit != recipe.train_limit
            own = train
            if more:
                own, _ = load_split(given.data, given.out, recipe.teacher_limit, 10, accelerator.device, given.size)
            if given.held_out:
                val = held_out(own, train, given.held_out)
        work = add_likeness if given.likeness else run_lanes if given.lanes else run_rows
        bench = Bench(given, recipe, accelerator, train, val, own, given.out)
        if given.unfinished:
            unfinished = score_unfinished(bench)
        else:
            work(bench)
    summarize(given.out, tuple(given.rows), unfinished)


if __name__ == "__main__":
    main()
