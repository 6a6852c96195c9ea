"""How each row of the table of methods is trained: on the labels, under the teacher, or two networks together."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from filelock import FileLock
from resident import Batch
from safetensors.torch import load_file
from table_bench import CLASSES, LAST, Bench
from table_settings import needs_teacher
from table_teacher import TeacherAnswers, at_tap
from torch import Tensor, nn

from iekd.compress.diagnose import diagnose_tap
from iekd.compress.diagnostics.finished_run import Split
from iekd.compress.distill import Distillation
from iekd.compress.objectives import (
    Objective,
    ObjectiveSettings,
    TeacherRecord,
    build_mutual,
    build_objective,
    is_mutual,
)
from iekd.compress.objectives.build import parse_objective
from iekd.compress.objectives.catalogue import reads_before_activation
from iekd.compress.objectives.lift import InheritExplore
from iekd.compress.objectives.mutual import DeepMutual
from iekd.compress.teacher import Supervised
from iekd.compress.together import networks_apart
from iekd.compress.trainer import seed_everything
from iekd.errors import InputError, unknown_name
from iekd.models.taps import Features, Tapped, before


class Trained(NamedTuple):
    """The student of one row."""

    network: nn.Module
    facts: dict[str, float]
    """For the record: CKA of each part of its channels with the teacher, how hard each term pulls on them, and the
    share of steps whose gradient was clipped."""


class Pupil(NamedTuple):
    """A student under its objective, ready to be trained."""

    student: Tapped
    teacher: Tapped
    """Read where the row reads it."""
    objective: Objective
    kind: str
    """Which transfer, without its lift, and what else its encoder hangs on: rows of one kind share what it learns from
    the teacher."""


class Row(NamedTuple):
    """What a row's name asks for."""

    objective: str
    settings: ObjectiveSettings
    tap: int | str = LAST
    """Of both networks, as the objective reads it."""

    @property
    def kind(self) -> str:
        """See :class:`Pupil`."""
        own = [
            f"{name}={getattr(self.settings, name)}"
            for name in ENCODER
            if getattr(self.settings, name) != getattr(ObjectiveSettings, name)
        ]
        own += [f"tap={self.tap}"] if self.tap != LAST else []
        transfer = self.objective.split("+")[0].removeprefix("ie-")
        return f"{transfer}@{','.join(own)}" if own else transfer


ENCODER = ("factor_channels", "hidden_channels")
"""Settings that the teacher's side hangs on."""


def pupil(bench: Bench, teacher: Tapped, row: str, seed: int) -> Pupil:
    """The student and the objective of one row, as the seed makes them."""
    asked, size = parse_row(row, bench.arguments), bench.train.size
    student = bench.tapped(bench.arguments.student, seed, "student", asked.tap)
    teacher = at_tap(teacher, asked.tap, size)
    seed_everything(seed, "objective-init", 0)
    objective = build_objective(
        asked.objective,
        teacher=teacher.shapes(size),
        student=student.shapes(size),
        classes=CLASSES,
        settings=asked.settings,
    ).to(bench.accelerator.device)
    return Pupil(student, teacher, objective, asked.kind)


@torch.no_grad()
def settle(bench: Bench, pupil: Pupil, answers: Callable[[Tensor, int], Features]) -> None:
    """Let the objective estimate what it estimates from data."""
    probe = torch.arange(min(512, len(bench.train)), device=bench.accelerator.device)
    pupil.student.eval()
    pupil.objective.prepare(pupil.student(bench.train.view(probe, 0)), answers(probe, 0))


def distilled(bench: Bench, answers: TeacherAnswers, row: str, seed: int) -> Trained:
    """Train one row against the teacher."""
    own = pupil(bench, answers.teacher, row, seed)
    pretraining = own.objective.pretraining()
    if pretraining is not None:
        with FileLock(bench.folder / f"factors-{own.kind}.lock"):  # one teacher, one factor, for all rows and seeds
            epochs = bench.recipe.factor_epochs
            bench.fit(pretraining, f"factors-{own.kind}", epochs, 0, lambda b: (answers(b[0], b[2]).taps,))
        pretraining.requires_grad_(False)
    settle(bench, own, answers)

    @torch.no_grad()
    def inputs(batch: Batch) -> tuple[Tensor, ...]:
        indices, targets, view = batch
        record = own.objective.record(answers(indices, view))
        return (bench.train.view(indices, view), targets, record.logits, *record.codes)

    clipped = bench.fit(Distillation(own.student, own.objective), f"{row}-{seed}", bench.recipe.epochs, seed, inputs)
    facts = {**clipped, **likeness(bench, own), **pulls(bench, own, answers)}
    return Trained(own.student.network, facts)


def likeness(bench: Bench, pupil: Pupil) -> dict[str, float]:
    """:func:`likeness_of` where the row has two parts."""
    lifts = [lift for lift in getattr(pupil.objective, "lifts", []) if len(lift.heads) == 2]
    return likeness_of(bench, pupil.teacher, pupil.student, lifts[0]) if lifts else {}


def likeness_of_kept(bench: Bench, teacher: Tapped, row: str, seed: int, weights: Path) -> dict[str, float]:
    """:func:`likeness` of a student whose weights were kept."""
    own = pupil(bench, teacher, row, seed)
    settle(bench, own, lambda indices, view: own.teacher(bench.train.view(indices, view)))  # a split by relevance
    own.student.network.load_state_dict(load_file(weights))
    return likeness(bench, own)


def pulls(bench: Bench, pupil: Pupil, answers: Callable[[Tensor, int], Features]) -> dict[str, float]:
    """:func:`pulls_of` on the first batch of the images."""
    some = torch.arange(min(bench.recipe.batch, len(bench.train)), device=bench.accelerator.device)
    return pulls_of(bench, pupil.student, pupil.objective, some, pupil.objective.record(answers(some, 0)))


def pulls_of(
    bench: Bench, student: Tapped, objective: Objective, some: Tensor, teacher: TeacherRecord
) -> dict[str, float]:
    """Size of each term's gradient on the student's last map, as a share of the labels'; after the training."""
    features = student.eval()(bench.train.view(some, 0))
    terms = objective.eval()(features, teacher, bench.train.targets[some])
    pulls = {name: torch.autograd.grad(term, features.taps[0], retain_graph=True)[0] for name, term in terms.items()}
    task = pulls.pop("task").norm().clamp(min=1e-12)
    return {f"pull_{name}": round(float(pull.norm() / task), 4) for name, pull in pulls.items()}


@torch.no_grad()
def likeness_of(bench: Bench, teacher: Tapped, student: Tapped, lift: InheritExplore) -> dict[str, float]:
    """What ``iekd-compress diagnose`` says of the parts, on a thousand validation images."""
    chosen = torch.arange(min(1000, len(bench.val)), device=lift.explore_index.device)
    pixels = torch.split(bench.val.view(chosen, None), 250)
    theirs, own = (
        torch.cat([network(part).taps[0].float().cpu() for part in pixels]) for network in (teacher, student.eval())
    )
    found = diagnose_tap(-1, theirs, own, Split(lift.inherit_index.cpu(), lift.explore_index.cpu()))
    values = {f"cka_{part.part}": round(part.cka.value, 4) for part in found.parts if part.cka and part.part != "all"}
    return {**values, "chance": round(found.chance, 4)} if found.chance is not None else values


def pair(bench: Bench, row: str, seed: int) -> tuple[list[Tapped], DeepMutual]:
    """Two students, and the task that trains them together."""
    asked = parse_row(row, bench.arguments)
    networks = [bench.tapped(bench.arguments.student, seed, role, asked.tap) for role in ("peer", "student")]
    task = build_mutual(asked.objective, networks, image_size=bench.train.size, settings=asked.settings)
    return networks, task


def together(bench: Bench, row: str, seed: int) -> Trained:
    """Train two students together, without a teacher; returns the second."""
    networks, task = pair(bench, row, seed)
    clipped = bench.fit(
        task,
        f"{row}-{seed}",
        bench.recipe.epochs,
        seed,
        lambda b: (bench.train.view(b[0], b[2]), b[1]),
        apart=networks_apart(task),
    )
    return Trained(networks[1].network, clipped)


def alone(bench: Bench, row: str, seed: int) -> Trained:
    """Train the student on the labels."""
    student = bench.tapped(bench.arguments.student, seed, "student")
    task = Supervised(student.network)
    clipped = bench.fit(
        task, f"{row}-{seed}", bench.recipe.epochs, seed, lambda b: (bench.train.view(b[0], b[2]), b[1])
    )
    return Trained(student.network, clipped)


def parse_row(row: str, arguments: argparse.Namespace) -> Row:
    """What a row names: ``--set`` holds for all rows, then comes what follows the row's ``@``, ``tap=`` among it.

    Raises:
        InputError: no such setting, or a value that it cannot have.
    """
    name, _, own = row.partition("@")
    kinds = {**get_type_hints(ObjectiveSettings), "tap": str}
    changes: dict[str, Any] = {}
    for text in [*arguments.set, *filter(None, own.split(","))]:
        key, _, value = text.partition("=")
        if key not in kinds:
            raise unknown_name("setting", key, kinds)
        kind = (get_args(kinds[key]) or (kinds[key],))[0]  # the first of `float | None`
        try:
            changes[key] = kind(value)
        except ValueError:
            raise InputError(f"{row}: {text} is not of type {kind.__name__}.", "Such as factor_channels=16.") from None
    text = str(changes.pop("tap", LAST))
    tap = int(text) if text.removeprefix("-").isdigit() else text
    return Row(name, ObjectiveSettings(**changes), before(tap) if reads_before_activation(name) else tap)


def check_row(row: str, arguments: argparse.Namespace) -> None:
    """Raise unless the row names an objective and settings that there are.

    Raises:
        InputError: an unknown objective or setting, or settings of the student alone, which has none.
    """
    found = parse_row(row, arguments)
    if found.objective == "ce" and row != "ce":
        raise InputError(f"{row}: ce is the student alone and has no settings.", "Write ce.")
    if not is_mutual(found.objective):
        parse_objective(found.objective)


def train_row(bench: Bench, row: str, seed: int, answers: Callable[[int | str], TeacherAnswers]) -> Trained:
    """The trained student of one row; only rows that need the teacher ask for its answers, at their tap."""
    if row == "ce":
        return alone(bench, row, seed)
    if not needs_teacher(row):
        return together(bench, row, seed)
    return distilled(bench, answers(parse_row(row, bench.arguments).tap), row, seed)
