"""Does inheriting and exploring lift feature distillation?  Every method on CIFAR-10, one table.

    python benchmarks/cifar10_table.py --data folder:cifar10 --out runs/table                 # the paper's 160 epochs
    python benchmarks/cifar10_table.py --data folder:cifar10 --out runs/table --recipe short  # for a CPU

Every method sees the same images in the same order and views (a function of the seed alone), the same number of epochs,
one teacher, and its default weights, unless its row says otherwise: ``ie-ft@inherit_weight=11.05`` is ``ie-ft`` with
that setting.  Finished rows are kept, so the same command goes on after a stop; ``--jobs`` trains several rows side by
side, which a small network leaves room for on a GPU.

A row needs the teacher's weights and nothing else of the folder: copy ``teacher/`` and ``rows/`` to another machine and
the table goes on there.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from paired import render, result_line
from resident import Batch, Resident, load_split
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iekd.compress.diagnose import diagnose_tap
from iekd.compress.diagnostics.finished_run import Split
from iekd.compress.distill import Distillation
from iekd.compress.objectives import ObjectiveSettings, build_mutual, build_objective, is_mutual
from iekd.compress.objectives.lift import InheritExplore
from iekd.compress.observer import Observer
from iekd.compress.teacher import Supervised
from iekd.compress.trainer import FitSettings, fit, seed_everything
from iekd.deploy.fingerprint import fingerprint
from iekd.files import atomic_file, write_json
from iekd.models.registry import build, resolve
from iekd.models.taps import Features, Tapped

CLASSES = 10
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
FIELDS = (
    *("row", "seed", "top1", "cka_inheritance", "cka_exploration", "chance"),
    *("epochs", "recipe", "settings", "seconds", "device", "torch", "commit"),
)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast, the same for every method."""

    epochs: int
    teacher_epochs: int
    factor_epochs: int
    batch: int
    lr: float
    optimizer: str
    weight_decay: float
    milestones: tuple[float, ...]
    views: int | None
    """Recurring views, whose teacher's answers are kept; None: fresh views, the teacher runs in every step."""
    train_limit: int | None = None
    val_limit: int | None = None
    teacher_limit: int | None = None
    """Images that the teacher is trained on; more than the student's where a pretrained one is imitated."""

    def fit(self, epochs: int, seed: int) -> FitSettings:
        """As the trainer takes it."""
        return FitSettings(
            epochs=epochs,
            lr=self.lr,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            milestones=self.milestones,
            clip_norm=5.0,
            seed=seed,
        )


RECIPES = {
    "paper": Recipe(160, 160, 30, 128, 0.1, "sgd", 5e-4, (0.5, 0.75), None),
    "short": Recipe(10, 3, 5, 64, 0.1, "sgd", 5e-4, (), 5, train_limit=10_000),
    "smoke": Recipe(1, 1, 1, 64, 0.05, "sgd", 5e-4, (), 1, 256, 128, 384),
}


@dataclass
class Bench:
    """What every row needs."""

    arguments: argparse.Namespace
    recipe: Recipe
    accelerator: Accelerator
    train: Resident
    val: Resident
    teacher_train: Resident
    folder: Path

    @torch.no_grad()
    def top1(self, network: nn.Module) -> float:
        """Per cent of the validation images."""
        network.eval()
        right = 0
        for indices in torch.split(torch.arange(len(self.val), device=self.accelerator.device), 500):
            with self.accelerator.autocast():
                logits = network(self.val.view(indices, None))
            right += int((logits.argmax(1) == self.val.targets[indices]).sum())
        return 100 * right / len(self.val)

    def fit(
        self, task: nn.Module, name: str, epochs: int, seed: int, inputs: Any, data: Resident | None = None
    ) -> None:
        """Train ``task``; a stopped training goes on from its last epoch."""
        views = self.recipe.views if data is None else None
        batches: Any = lambda epoch: (data or self.train).epoch(epoch, self.recipe.batch, seed, views)  # noqa: E731
        fit(
            task,
            batches,
            self.recipe.fit(epochs, seed),
            name=name,
            folder=self.folder / "checkpoints" / name,
            accelerator=self.accelerator,
            observer=Told(name, epochs) if self.arguments.verbose else Observer(),
            inputs=inputs,
        )

    def tapped(self, name: str, seed: int, role: str) -> Tapped:
        """A fresh network whose weights follow from the seed."""
        seed_everything(seed, f"{role}-init", 0)
        network = build(resolve(name), CLASSES, self.train.size)
        if self.arguments.compile:
            network.forward_intermediates = torch.compile(network.forward_intermediates)  # type: ignore[assignment, arg-type]
        return Tapped(network).to(self.accelerator.device).to(memory_format=torch.channels_last)


class Told(Observer):
    """A line an epoch."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs, self.start = name, epochs, time.perf_counter()

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        """See :class:`Observer`."""
        seconds = time.perf_counter() - self.start
        print(f"{name} epoch {epoch + 1}/{self.epochs} loss {figures['loss']:.3f} {seconds:.0f} s", flush=True)


class TeacherAnswers:
    """The teacher's logits and maps for every image and recurring view, or the teacher itself where views are fresh."""

    def __init__(self, bench: Bench, teacher: Tapped) -> None:
        self.teacher, self.train = teacher, bench.train
        self.kept = [self._keep(bench.folder / f"answers-{view}", view) for view in range(bench.recipe.views or 0)]

    def _keep(self, file: Path, view: int) -> Features:
        """The answers to one view of all images, asked once and shared by all workers through a file."""
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                parts = [self._ask(part, view) for part in torch.split(torch.arange(len(self.train)), 500)]
                taps = torch.cat([part.taps[0] for part in parts]).half().contiguous()
                with atomic_file(file) as temporary:
                    save_file({"logits": torch.cat([part.logits for part in parts]), "taps": taps}, temporary)
            found = load_file(file, device=str(self.train.targets.device))
        return Features(found["logits"], (found["taps"],))

    @torch.no_grad()
    def _ask(self, indices: Tensor, view: int) -> Features:
        answer = self.teacher(self.train.view(indices.to(self.train.targets.device), view))
        return Features(answer.logits.float(), answer.taps)

    def __call__(self, indices: Tensor, view: int) -> Features:
        """Its answer to a batch."""
        if not self.kept:
            return self._ask(indices, view)
        kept = self.kept[view]
        return Features(kept.logits[indices], tuple(tap[indices].float() for tap in kept.taps))


def train_teacher(bench: Bench) -> Tapped:
    """The one teacher of all rows; trained once, kept as ``teacher/`` (weights in half precision)."""
    teacher, name = bench.tapped(bench.arguments.teacher, 0, "teacher"), bench.arguments.teacher
    weights, told = bench.folder / "teacher" / "weights.safetensors", bench.folder / "teacher" / "teacher.json"
    with FileLock(bench.folder / "teacher.lock"):
        if not told.exists():
            data = bench.teacher_train
            task = Supervised(teacher.network)
            epochs = bench.recipe.teacher_epochs
            bench.fit(task, "teacher", epochs, 0, lambda b: (data.view(b[0], b[2]), b[1]), data)
            weights.parent.mkdir(exist_ok=True)
            half = {key: value.half() if value.is_floating_point() else value for key, value in _state(teacher).items()}
            with atomic_file(weights) as temporary:
                save_file(half, temporary)
            _load(teacher, weights)
            facts = {"teacher": name, "top1": bench.top1(teacher.network), "images": len(data), "epochs": epochs}
            write_json(told, facts)
    _load(teacher, weights)  # what every row sees, this process or another
    teacher.eval().requires_grad_(False)
    return teacher


def _state(teacher: Tapped) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in teacher.network.state_dict().items()}


def _load(teacher: Tapped, weights: Path) -> None:
    teacher.network.load_state_dict(load_file(weights))


class Trained(NamedTuple):
    """The student of one row."""

    network: nn.Module
    likeness: dict[str, float]
    """CKA of each part of its channels with the teacher, and how many random splits differ as much."""


def distilled(bench: Bench, answers: TeacherAnswers, row: str, seed: int) -> Trained:
    """Train one row against the teacher."""
    student, size = bench.tapped(bench.arguments.student, seed, "student"), bench.train.size
    name, settings = parse_row(row, bench.arguments)
    seed_everything(seed, "objective-init", 0)
    objective = build_objective(
        name,
        teacher=answers.teacher.shapes(size),
        student=student.shapes(size),
        classes=CLASSES,
        settings=settings,
    ).to(bench.accelerator.device)
    pretraining = objective.pretraining()
    if pretraining is not None:
        kind = name.split("+")[0].removeprefix("ie-")
        with FileLock(bench.folder / f"factors-{kind}.lock"):  # one teacher, one factor, for all rows and seeds
            epochs = bench.recipe.factor_epochs
            bench.fit(pretraining, f"factors-{kind}", epochs, 0, lambda b: (answers(b[0], b[2]).taps,))
        pretraining.requires_grad_(False)
    probe = torch.arange(min(512, len(bench.train)), device=bench.accelerator.device)
    with torch.no_grad():
        student.eval()
        objective.prepare(student(bench.train.view(probe, 0)), answers(probe, 0))

    @torch.no_grad()
    def inputs(batch: Batch) -> tuple[Tensor, ...]:
        indices, targets, view = batch
        record = objective.record(answers(indices, view))
        return (bench.train.view(indices, view), targets, record.logits, *record.codes)

    bench.fit(Distillation(student, objective), f"{row}-{seed}", bench.recipe.epochs, seed, inputs)
    lifts = [lift for lift in getattr(objective, "lifts", []) if len(lift.heads) == 2]
    return Trained(student.network, likeness_of(bench, answers.teacher, student, lifts[0]) if lifts else {})


@torch.no_grad()
def likeness_of(bench: Bench, teacher: Tapped, student: Tapped, lift: InheritExplore) -> dict[str, float]:
    """What ``iekd-compress diagnose`` says of the parts, on a thousand validation images."""
    pixels = torch.split(
        bench.val.view(torch.arange(min(1000, len(bench.val)), device=lift.explore_index.device), None), 250
    )
    maps = [
        torch.cat([network(part).taps[0].float().cpu() for part in pixels]) for network in (teacher, student.eval())
    ]
    found = diagnose_tap(-1, *maps, Split(lift.inherit_index.cpu(), lift.explore_index.cpu()))
    values = {f"cka_{part.part}": round(part.cka.value, 4) for part in found.parts if part.cka and part.part != "all"}
    return {**values, "chance": round(found.chance, 4)} if found.chance is not None else values


def together(bench: Bench, row: str, seed: int) -> Trained:
    """Train two students together, without a teacher; returns the second."""
    networks = [bench.tapped(bench.arguments.student, seed, role) for role in ("peer", "student")]
    name, settings = parse_row(row, bench.arguments)
    task = build_mutual(name, networks, image_size=bench.train.size, settings=settings)
    bench.fit(task, f"{row}-{seed}", bench.recipe.epochs, seed, lambda b: (bench.train.view(b[0], b[2]), b[1]))
    return Trained(networks[1].network, {})


def alone(bench: Bench, row: str, seed: int) -> Trained:
    """Train the student on the labels."""
    student = bench.tapped(bench.arguments.student, seed, "student")
    task = Supervised(student.network)
    bench.fit(task, f"{row}-{seed}", bench.recipe.epochs, seed, lambda b: (bench.train.view(b[0], b[2]), b[1]))
    return Trained(student.network, {})


def parse_row(row: str, arguments: argparse.Namespace) -> tuple[str, ObjectiveSettings]:
    """The objective that a row names, and its settings: ``--set`` for all rows, then what follows the row's ``@``."""
    name, _, own = row.partition("@")
    changes: dict[str, Any] = {}
    for text in [*arguments.set, *filter(None, own.split(","))]:
        key, _, value = text.partition("=")
        changes[key] = float(value) if value.replace(".", "", 1).isdigit() else value
    return name, ObjectiveSettings(**changes)


def train_row(bench: Bench, row: str, seed: int, answers: Callable[[], TeacherAnswers]) -> Trained:
    """The trained student of one row; only rows that need the teacher ask for it."""
    if row == "ce":
        return alone(bench, row, seed)
    if is_mutual(parse_row(row, bench.arguments)[0]):
        return together(bench, row, seed)
    return distilled(bench, answers(), row, seed)


def run_rows(bench: Bench) -> None:
    """Every row and seed that no result is there for and no other process has in hand."""
    answers = functools.cache(lambda: TeacherAnswers(bench, train_teacher(bench)))
    for seed in bench.arguments.seeds:
        for row in bench.arguments.rows:
            file = bench.folder / "rows" / f"{row}-{seed}.json"
            try:
                with FileLock(bench.folder / f"{row}-{seed}.lock", timeout=0):
                    if not file.exists():
                        start = time.perf_counter()
                        keep(bench, file, row, seed, train_row(bench, row, seed, answers), start)
            except Timeout:
                continue


def keep(bench: Bench, file: Path, row: str, seed: int, trained: Trained, start: float) -> None:
    """Measure and write one row's result; its checkpoint is not needed any more."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    top1, seconds = bench.top1(trained.network), time.perf_counter() - start
    found = {
        "row": row,
        "seed": seed,
        "top1": round(top1, 3),
        **trained.likeness,
        "epochs": bench.recipe.epochs,
        "recipe": bench.arguments.recipe,
        "settings": " ".join(bench.arguments.set),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if bench.accelerator.device.type == "cuda" else fingerprint(1).device,
        "torch": torch.__version__,
        "commit": subprocess.run(command, capture_output=True, text=True).stdout.strip(),
    }
    write_json(file, found)
    print(f"{row:12} seed {seed}  top-1 {top1:.2f} %  {seconds:.0f} s  {trained.likeness or ''}", flush=True)
    (bench.folder / "checkpoints" / f"{row}-{seed}" / "last.pt").unlink(missing_ok=True)


def summarize(folder: Path, order: tuple[str, ...]) -> None:
    """``table.csv``, ``table.md`` and the last line."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "rows").glob("*.json"))]
    with (folder / "table.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, FIELDS)
        writer.writeheader()
        writer.writerows(found)
    scores: dict[str, dict[int, float]] = {}
    for name in dict.fromkeys([*order, *(entry["row"] for entry in found)]):
        own = {entry["seed"]: entry["top1"] for entry in found if entry["row"] == name}
        if own:
            scores[name] = own
    told = folder / "teacher" / "teacher.json"
    table = render(scores, json.loads(told.read_text())["top1"] if told.exists() else None)
    (folder / "table.md").write_text(table)
    print(table)
    print(result_line(scores))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for iekd-compress")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; the same one resumes")
    parser.add_argument("--teacher", default="cifar_resnet56")
    parser.add_argument("--student", default="cifar_resnet20")
    parser.add_argument("--recipe", choices=RECIPES, default="paper")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="objectives")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="settings of the objective, as name=value")
    parser.add_argument("--jobs", type=int, default=1, help="rows trained side by side")
    parser.add_argument("--threads", type=int, default=0, help="of each job; 0: all")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.jobs > 1:
        command = [sys.executable, *sys.argv, "--jobs", "1"]
        workers = [subprocess.Popen(command) for _ in range(given.jobs)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            sys.exit(1)
    else:
        if given.threads:
            torch.set_num_threads(given.threads)
        recipe = RECIPES[given.recipe]
        on_gpu = torch.cuda.is_available()
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision=given.precision)
        with FileLock(given.out / "data.lock"):
            limits = (recipe.train_limit, recipe.val_limit)
            train, val = load_split(given.data, given.out, *limits, accelerator.device)
            more = recipe.teacher_limit != recipe.train_limit
            own = load_split(given.data, given.out, recipe.teacher_limit, 10, accelerator.device)[0] if more else train
        run_rows(Bench(given, recipe, accelerator, train, val, own, given.out))
    summarize(given.out, tuple(given.rows))


if __name__ == "__main__":
    main()
