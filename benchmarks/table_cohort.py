"""The table of methods on a large GPU: rows trained side by side, the teacher's answers shared (see cohort.py)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cohort import LANE_FILE, forget, train_side_by_side
from lane import Lane, Seen
from safetensors.torch import load_file
from table_bench import LAST, Bench
from table_rows import Pupil, Trained, pair, parse_row, pulls, pupil, settle
from table_settings import needs_teacher
from table_teacher import keep_teacher, load_teacher, save_half, teacher_is_kept, train_teacher
from torch import Tensor, nn

from iekd.compress.distill import Distillation
from iekd.compress.teacher import Supervised
from iekd.compress.together import networks_apart
from iekd.models.taps import Features, Tapped

Keep = Callable[[str, int, Trained, float], None]
"""Writes what became of a row and seed after so many seconds."""

STUDENTS = ("task.student.network.", "task.network.")
"""Where a lane's state has the student: under the teacher, or alone."""


class Entrant(NamedTuple):
    """A row in training."""

    lane: Lane
    student: nn.Module
    pupil: Pupil | None


def run_side_by_side(bench: Bench, todo: list[tuple[str, int]], keep: Keep) -> None:
    """Train all of ``todo``, some at a time; where the teacher is not there yet, first it and the rows without it."""
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    if bench.teacher_train is not bench.train or bench.arguments.teacher_from:
        train_teacher(bench)  # on other images than the lanes have, or not at all
    if not teacher_is_kept(bench):
        alone = [(row, seed) for row, seed in todo if not needs_teacher(row)]
        _with_the_teacher(bench, alone, keep)
        todo = [own for own in todo if own not in alone]
    teacher = _seen_by_all(bench, load_teacher(bench), [row for row, _ in todo if needs_teacher(row)])
    factors = _factors(bench, teacher, [(row, seed) for row, seed in todo if needs_teacher(row)])
    size = bench.arguments.lanes
    for some in (todo[start : start + size] for start in range(0, len(todo), size)):
        begun = time.perf_counter()
        entrants = [
            _taught(bench, teacher, row, seed, factors) if needs_teacher(row) else _untaught(bench, row, seed)
            for row, seed in some
        ]
        clipped = _train(bench, [entrant.lane for entrant in entrants], teacher)
        seconds = time.perf_counter() - begun
        for (row, seed), entrant in zip(some, entrants, strict=True):
            facts = {"lanes": len(entrants), "clipped": clipped[entrant.lane.name]}
            if entrant.pupil is not None:
                facts |= pulls(bench, entrant.pupil, _ask(bench, entrant.pupil))
                save_half(bench.folder / "students" / f"{row}-{seed}.safetensors", entrant.student)
            keep(row, seed, Trained(entrant.student, facts), seconds)
            forget(bench.folder / "checkpoints", entrant.lane.name)


def score_unfinished(bench: Bench) -> dict[str, tuple[float, float]]:
    """Epochs done and top-1, per cent, of every student alone or under the teacher as its unfinished lane kept it."""
    found = {}
    for file in sorted((bench.folder / "checkpoints").glob(f"*/{LANE_FILE}")):
        tensors = load_file(file)
        place = next((place for place in STUDENTS if any(name.startswith(place) for name in tensors)), None)
        if place is None or file.parent.name == "teacher":
            continue
        network = bench.tapped(bench.arguments.student, 0, "student").network
        own = {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}
        network.load_state_dict(own)
        epochs = int(tensors["step"]) / (len(bench.train) // bench.recipe.batch)
        found[file.parent.name] = epochs, bench.top1(network)
        print(f"{file.parent.name} after {epochs:g} epochs: {found[file.parent.name][1]:.2f} %", flush=True)
    return found


def waits_for_host(bench: Bench, row: str) -> bool:
    """Does a step of this row decide something in Python, so that it cannot be captured?"""
    return parse_row(row, bench.arguments).objective == "switokd"


def _seen_by_all(bench: Bench, teacher: Tapped, rows: list[str]) -> Tapped:
    """The teacher, tapped wherever one of the rows reads it."""
    taps = [LAST, *(parse_row(row, bench.arguments).tap for row in rows)]
    return Tapped(teacher.network, taps, bench.train.size).eval()


def _with_the_teacher(bench: Bench, pairs: list[tuple[str, int]], keep: Keep) -> None:
    begun = time.perf_counter()
    teacher = bench.tapped(bench.arguments.teacher, 0, "teacher")
    entrants = [_untaught(bench, row, seed) for row, seed in pairs]
    settings = bench.recipe.fit(bench.recipe.teacher_epochs, 0)
    lanes = [
        *(entrant.lane for entrant in entrants),
        Lane("teacher", Supervised(teacher.network), 0, settings, _labels),
    ]
    clipped = _train(bench, lanes, None)
    keep_teacher(bench, teacher)
    seconds = time.perf_counter() - begun
    for (row, seed), entrant in zip(pairs, entrants, strict=True):
        facts = {"lanes": len(lanes), "clipped": clipped[entrant.lane.name]}
        keep(row, seed, Trained(entrant.student, facts), seconds)
    for lane in lanes:
        forget(bench.folder / "checkpoints", lane.name)


def _untaught(bench: Bench, row: str, seed: int) -> Entrant:
    """A row on the labels, or two students together, of which the second counts."""
    settings = bench.recipe.fit(bench.recipe.epochs, seed)
    if row == "ce":
        student = bench.tapped(bench.arguments.student, seed, "student").network
        return Entrant(Lane(f"{row}-{seed}", Supervised(student), seed, settings, _labels), student, None)
    networks, task = pair(bench, row, seed)
    lane = Lane(f"{row}-{seed}", task, seed, settings, _labels, networks_apart(task))
    return Entrant(lane, networks[1].network, None)


def _taught(bench: Bench, teacher: Tapped, row: str, seed: int, factors: dict[str, dict[str, Tensor]]) -> Entrant:
    own = pupil(bench, teacher, row, seed)
    pretraining = own.objective.pretraining()
    if pretraining is not None:
        pretraining.load_state_dict(factors[own.kind])
        pretraining.requires_grad_(False)
    settle(bench, own, _ask(bench, own))

    def inputs(seen: Seen) -> tuple[Any, ...]:
        assert seen.teacher is not None
        record = own.objective.record(seen.teacher)
        return (seen.images, seen.targets, record.logits, *record.codes)

    task = Distillation(own.student, own.objective)
    settings = bench.recipe.fit(bench.recipe.epochs, seed)
    lane = Lane(f"{row}-{seed}", task, seed, settings, inputs, tap=_place(teacher, own))
    return Entrant(lane, own.student.network, own)


def _factors(bench: Bench, teacher: Tapped, pairs: list[tuple[str, int]]) -> dict[str, dict[str, Tensor]]:
    """What each kind of transfer learns from the teacher's maps, once for all rows and seeds."""
    lanes: dict[str, Lane] = {}
    settings = bench.recipe.fit(bench.recipe.factor_epochs, 0)
    for row, seed in pairs:
        own = pupil(bench, teacher, row, seed)
        learner = own.objective.pretraining()
        if learner is not None and own.kind not in lanes:
            lanes[own.kind] = Lane(f"factors-{own.kind}", learner, 0, settings, _taps, tap=_place(teacher, own))
    if lanes:
        _train(bench, list(lanes.values()), teacher)
    return {kind: lane.task.state_dict() for kind, lane in lanes.items()}


def _place(teacher: Tapped, pupil: Pupil) -> int:
    """Which of the teacher's maps a row reads."""
    return teacher.reads.index(pupil.teacher.reads[0])


def _taps(seen: Seen) -> tuple[Any, ...]:
    assert seen.teacher is not None
    return (seen.teacher.taps,)


def _labels(seen: Seen) -> tuple[Any, ...]:
    return seen.images, seen.targets


def _ask(bench: Bench, pupil: Pupil) -> Callable[[Tensor, int], Features]:
    """What the teacher says where a row reads it, of some images in a view."""

    @torch.no_grad()
    def ask(indices: Tensor, view: int) -> Features:
        with bench.accelerator.autocast():
            found = pupil.teacher(bench.train.view(indices, view))
        return Features(found.logits.float(), tuple(tap.float() for tap in found.taps))

    return ask


def _train(bench: Bench, lanes: list[Lane], teacher: Tapped | None) -> dict[str, float]:
    device, start, epochs = bench.accelerator.device, time.perf_counter(), itertools.count(1)
    on = bench.arguments.precision == "bf16"
    for lane in lanes:
        bench.claim(lane.name)

    def told(_epoch: int, losses: dict[str, float]) -> None:
        lowest, highest = min(losses.values()), max(losses.values())
        seconds = time.perf_counter() - start
        print(
            f"{len(losses)} side by side, epoch {next(epochs)}: loss {lowest:.3f}..{highest:.3f}, {seconds:.0f} s",
            flush=True,
        )

    return train_side_by_side(
        lanes,
        bench.train,
        teacher,
        bench.recipe.batch,
        lambda: torch.autocast(device.type, torch.bfloat16, enabled=on, cache_enabled=False),
        bench.recipe.views,
        told,
        bench.folder / "checkpoints",
    )
