"""The distillation stage of mutual learning: two networks train together, and both can ship."""

from __future__ import annotations

from typing import Any

from torch import nn

from iekd.compress.clipping import Group
from iekd.compress.job import Job
from iekd.compress.objectives.lift import InheritExplore
from iekd.compress.objectives.mutual import DeepMutual, build_mutual
from iekd.compress.pace import Pace
from iekd.compress.plan import Plan
from iekd.compress.run_objective import objective_settings, taps_of
from iekd.compress.teacher import first_network
from iekd.compress.trainer import FitSettings, fit, seed_everything
from iekd.compress.training_state import load_best
from iekd.errors import InputError
from iekd.models.checkpoint import Artefact, save_artefact
from iekd.models.ensemble import Ensemble
from iekd.models.taps import Tapped


def train_together(given: dict[str, str | nn.Module], plan: Plan, job: Job) -> dict[str, Any]:
    """Stage ``distill`` of a mutual objective: write the artefacts ``teacher/`` and ``student/``.

    Args:
        given: what the user named as ``teacher`` and ``student``: here two equals, but for ``switokd``.
        plan: where their first weights come from, epochs, learning rates; a transfer's heads learn at the student's.
        job: the run.

    Raises:
        InputError: an ensemble among them.
    """
    config, size = job.config, job.preprocessing.size
    origins = {"teacher": plan.teacher_origin, "student": plan.student_origin}
    weights = {"teacher": config.teacher_weights, "student": config.student_weights}
    made = {role: first_network(given[role], origins[role], weights[role], job, role) for role in origins}
    if any(isinstance(network, Ensemble) for network, _ in made.values()):
        raise InputError(f"{config.objective} trains two networks together, not an ensemble.", "Name one teacher.")
    taps = taps_of(config)._asdict()
    tapped = [Tapped(network, taps[role], size).to(job.device) for role, (network, _) in made.items()]
    seed_everything(config.seed, "objective-init", 0)
    settings, transfer = objective_settings(config), config.mutual_transfer
    task = build_mutual(config.objective, tapped, image_size=size, settings=settings, transfer=transfer)
    checkpoints = job.folder / "checkpoints" / "student"
    history = fit(
        task,
        job.train_batches(),
        FitSettings(epochs=plan.epochs, lr=plan.lr, weight_decay=config.weight_decay, seed=config.seed),
        name="student",
        folder=checkpoints,
        accelerator=job.accelerator,
        observer=job.observer,
        inputs=lambda batch: (batch.image, batch.target),
        evaluate=lambda: {
            "accuracy": job.accuracy(made["student"][0], mixed=True),
            "teacher_accuracy": job.accuracy(made["teacher"][0], mixed=True),
        },
        events=job.folder / "events" / "student",
        apart=networks_apart(task),
        pace=Pace(made["teacher"][0].parameters(), plan.teacher_lr / plan.lr),
    )
    if config.keep == "best":
        load_best(task, checkpoints)
    accuracy = {role: job.accuracy(network) for role, (network, _) in made.items()}
    if job.accelerator.is_main_process:
        for role, (network, architecture) in made.items():
            facts = {"accuracy": accuracy[role], "origin": origins[role], "objective": config.objective}
            kept = Artefact(network, architecture, job.data.classes, job.preprocessing, facts)
            save_artefact(job.folder / role, kept)
    return {
        "accuracy": accuracy["student"],
        "teacher_accuracy": accuracy["teacher"],
        "epochs": plan.epochs,
        "curves": history.figures,
        "note": f"accuracy {accuracy['teacher']:.1%} and {accuracy['student']:.1%}, {plan.epochs} epochs of "
        f"{config.objective} together",
    }


def networks_apart(task: DeepMutual) -> list[Group]:
    """What would have an optimiser of its own: each network with its heads, and what each learns from the other's maps.

    The papers train them so; under one norm the clipping of one network's gradient would slow the other.
    """
    groups: list[Group] = []
    for number, network in enumerate((task.a, task.b)):
        heads = [lift.heads for lift in task.lifts[number].modules() if isinstance(lift, InheritExplore)]
        groups.append([parameter for module in (network, *heads) for parameter in module.parameters()])
        groups.append(list(task.learners[number].parameters()))
    return groups
