"""The distillation stage: teacher's factors, then the student, then the student alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from filelock import FileLock
from torch import Tensor, nn

from iekd.compress.job import Job
from iekd.compress.objectives.base import Objective, TeacherRecord
from iekd.compress.quantizers.simulated import Answers, Simulated
from iekd.compress.run_objective import Teacher, make_objective, tap_teacher, taps_of
from iekd.compress.shared import Ask, answers_of, as_asked, shared_checkpoints
from iekd.compress.teacher import first_network
from iekd.compress.teacher_cache import AnswerCache, bytes_needed
from iekd.compress.trainer import FitSettings, fit
from iekd.compress.training_state import History, load_best
from iekd.compress.views import Batch
from iekd.errors import InputError
from iekd.files import sha256_of
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.ensemble import Ensemble
from iekd.models.taps import AUTO, BEFORE, Features, Tapped

MOST_VIEWS = 8
"""Augmented views kept of each image when the settings leave it open; more views cost disk and first-time forwards."""

FACTOR_LR = 2e-3
PROBE_IMAGES = 256
"""Training images from which an objective estimates a split by relevance, or OD's margins."""


class Distillation(nn.Module):
    """Student and objective: everything that distillation trains, in one module; the teacher stays outside."""

    def __init__(self, student: Tapped | Simulated, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, images: Tensor, targets: Tensor, logits: Tensor, *codes: Tensor) -> dict[str, Tensor]:
        """Named loss terms for augmented images (B, 3, H, W), labels (B,) and the teacher's record of these views."""
        terms: dict[str, Tensor] = self.objective(self.student(images), TeacherRecord(logits, codes), targets)
        return terms


class FrozenTeacher:
    """The teacher's answers to a batch, from the cache where there is one.

    Args:
        answer: asks the network: a batch to a tuple of tensors.
        cache: where answers are kept, or None to ask every time.
    """

    def __init__(self, answer: Callable[[Batch], tuple[Tensor, ...]], cache: AnswerCache | None) -> None:
        self._answer = answer
        self._cache = cache

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """The answers for ``batch``, float32."""
        if self._cache is None:
            return tuple(answer.float() for answer in self._answer(batch))
        return self._cache(batch.index, batch.view.clamp(min=0), lambda: self._answer(batch))


def distill(
    given: str | nn.Module, origin: str, lr: float, epochs: int, job: Job, teacher: nn.Module
) -> dict[str, Any]:
    """Stage ``distill``: write the artefact ``student/``, a plain network with nothing of the training in it."""
    network, architecture = first_network(given, origin, job.config.student_weights, job, "student")
    if isinstance(network, Ensemble):
        raise InputError(f"the student is one network, not the {len(network.members)} of '{given}'.", "Name one.")
    history, factor_history = distill_network(network, teacher, Schedule("student", lr, epochs), job)
    accuracy = job.accuracy(network)
    facts = {"accuracy": accuracy, "origin": origin, "objective": job.config.objective}
    if job.accelerator.is_main_process:
        save_artefact(
            job.folder / "student", Artefact(network, architecture, job.data.classes, job.preprocessing, facts)
        )
    return {
        "accuracy": accuracy,
        "epochs": epochs,
        "curves": history.figures,
        "factor_curves": factor_history.figures,
        "note": f"accuracy {accuracy:.1%}, {epochs} epochs of {job.config.objective} from {origin}",
    }


class Schedule(NamedTuple):
    """One training of a student."""

    name: str
    """Of its checkpoints and curves."""
    lr: float
    epochs: int


def distill_network(
    network: nn.Module,
    teacher: nn.Module,
    schedule: Schedule,
    job: Job,
    simulate: Callable[[Tapped], Simulated] | None = None,
) -> tuple[History, History]:
    """Train ``network`` in place under ``teacher``; returns the student's history and the factors'.

    Args:
        network: the student.
        teacher: trained.
        schedule: name, learning rate, epochs.
        job: the run, with the objective.
        simulate: makes the copy of the tapped student that is trained in its stead, under simulated quantisation.
    """
    taps, size = taps_of(job.config), job.preprocessing.size
    tapped_teacher = tap_teacher(teacher, taps.teacher, size).to(job.device).to(memory_format=torch.channels_last)
    tapped_teacher.eval().requires_grad_(False)
    student = Tapped(network, taps.student, size).to(job.device)
    if any(str(tap).removeprefix(BEFORE) == AUTO for tap in taps.teacher + taps.student):
        names = [", ".join(tapped.names) for tapped in (tapped_teacher, student)]
        job.observer.note(f"Tapped: {names[0]} of the teacher, {names[1]} of the student.")
    objective = make_objective(job.config, tapped_teacher, student, size, job.classes).to(job.device)
    factor_history = _prepare_factors(objective, tapped_teacher, student, job)
    _prepare_from_data(objective, tapped_teacher, student, job)
    if simulate is None:
        return _train(student, network, objective, tapped_teacher, schedule, job), factor_history
    simulated = simulate(student)
    history = _train(simulated, Answers(simulated), objective, tapped_teacher, schedule, job)
    network.load_state_dict(simulated.network.state_dict())
    return history, factor_history


def load_teacher(job: Job, given: str | nn.Module) -> nn.Module:
    """The network that stage ``teacher`` wrote."""
    return load_artefact(job.folder / "teacher", given if isinstance(given, nn.Module) else None).network


def asked(teacher: Teacher, accelerator: Accelerator) -> Ask:
    """``teacher`` as it answers in training: in the run's mixed precision, where it has one; float32 comes out."""

    def ask(images: Tensor) -> Features:
        with accelerator.autocast():
            found = teacher(images)
        return Features(found.logits.float(), tuple(tap.float() for tap in found.taps))

    return ask


def _prepare_factors(objective: Objective, teacher: Teacher, student: Tapped, job: Job) -> History:
    """Train what the objective learns from the teacher alone (the factors' auto-encoder), then freeze it."""
    pretraining = objective.pretraining()
    if pretraining is None:
        return History()
    shapes = teacher.shapes(job.preprocessing.size)
    cache = _cache("taps", tuple(tuple(shape) for shape in shapes), 1, job)
    ask = answers_of(asked(teacher, job.accelerator), shapes, job, MOST_VIEWS if cache else 0)
    frozen = FrozenTeacher(lambda batch: ask(batch).taps, cache)
    # maps are compared at the smaller size of both: of the student, the factors hang on that alone
    sizes = [(shape.height, shape.width) for shape in student.shapes(job.preprocessing.size)]
    settings = FitSettings(epochs=job.config.factor_epochs, lr=FACTOR_LR, weight_decay=0.0, seed=job.config.seed)
    folder = shared_checkpoints(job, "factors", sizes)
    folder.mkdir(parents=True, exist_ok=True)
    # of several runs under one teacher the first trains them, and the others wait for what it learned
    with FileLock(folder / ".lock") if job.shared else contextlib.nullcontext():
        history = fit(
            pretraining,
            job.train_batches(views=1),
            settings,
            name="factors",
            folder=folder,
            accelerator=job.accelerator,
            observer=job.observer,
            inputs=lambda batch: (frozen(batch),),
            events=job.folder / "events" / "factors",
        )
    pretraining.requires_grad_(False)
    return history


@torch.no_grad()
def _prepare_from_data(objective: Objective, teacher: Teacher, student: Tapped, job: Job) -> None:
    """Let the objective estimate what it estimates from data: margins, a split by relevance."""
    images = torch.from_numpy(job.some_images(job.data.train, PROBE_IMAGES)).to(job.device)
    student.eval()
    objective.prepare(student(images), teacher(images))
    for remark in objective.remarks():
        job.observer.note(remark)


def _train(
    student: Tapped | Simulated,
    judged: nn.Module,
    objective: Objective,
    teacher: Teacher,
    schedule: Schedule,
    job: Job,
) -> History:
    """Train ``student`` in place; ``judged`` gives the logits whose accuracy each epoch reports."""
    name, lr, epochs = schedule

    def compact(features: Features) -> tuple[Tensor, ...]:
        record = objective.record(features)
        return (record.logits, *record.codes)

    longest = max(epochs, job.config.epochs or 0)  # a shorter training reads the answers that the longer one kept
    views = min(longest, MOST_VIEWS) if job.config.views is None else job.config.views
    size = job.preprocessing.size
    with torch.no_grad():
        objective.eval()
        example = compact(teacher(torch.zeros(1, 3, size, size, device=job.device)))
        cache = _cache("records", tuple(tuple(part.shape[1:]) for part in example), views, job)
        kept = max(views, MOST_VIEWS) if cache else 0  # all runs of a search count alike, however short
        ask = answers_of(asked(teacher, job.accelerator), teacher.shapes(size), job, kept)
        frozen = FrozenTeacher(lambda batch: compact(ask(batch)), cache)
    task = Distillation(student, objective)
    checkpoints = job.folder / "checkpoints" / name
    history = fit(
        task,
        job.train_batches(views=views if cache else None),
        FitSettings(epochs=epochs, lr=lr, weight_decay=job.config.weight_decay, seed=job.config.seed),
        name=name,
        folder=checkpoints,
        accelerator=job.accelerator,
        observer=job.observer,
        inputs=lambda batch: (batch.image, batch.target, *frozen(batch)),
        evaluate=lambda: {"accuracy": job.accuracy(judged, mixed=True)},
        events=job.folder / "events" / name,
    )
    if job.config.keep == "best":
        load_best(task, checkpoints)
    return history


def _cache(name: str, shapes: tuple[tuple[int, ...], ...], views: int, job: Job) -> AnswerCache | None:
    """A cache for ``views`` views of the training images, or None where the settings or their size forbid it."""
    images = len(job.data.train)
    needed = bytes_needed(shapes, images, views)
    if views == 0 or job.config.views == 0:
        return None
    if needed > job.config.cache_gib * 2**30:
        job.observer.note(
            f"The teacher's {name} would take {needed / 2**30:.1f} GiB for {views} views, more than --cache-gib "
            f"{job.config.cache_gib:g}: the teacher runs in every step instead."
        )
        return None
    key = sha256_of(job.folder / "teacher" / "model.safetensors")[:16]
    return AnswerCache(_own_folder(job.folder / "cache" / f"{as_asked(name, job)}-{key}"), shapes, images, views)


def _own_folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is not a folder.", "Delete it.")
    return path
