"""The pruning stage: cut a share of the student, let it recover under the teacher, again and again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from iekd.compress.distill import Schedule, distill_network
from iekd.compress.job import Job
from iekd.compress.plan import Plan
from iekd.compress.prune import prune
from iekd.compress.pruning.share import goal_of_share
from iekd.compress.run_objective import later_config
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact

CUT = "cut"
"""Beside the checkpoint of its recovery, what a step left of the student: its widths hang on what was measured then."""


def prune_student(
    plan: Plan, job: Job, once: Callable[[Callable[[], None]], None], teacher: nn.Module, given: str | nn.Module
) -> dict[str, Any]:
    """Stage ``prune``: write the artefact ``pruned/``.

    Every step prunes what the step before left, to the same share of what remains, and is then distilled from the
    teacher.  Whether several small steps are recovered from better than one large one has not been measured here
    (docs/results.md prunes in one).

    Args:
        plan: learning rate and epochs.
        job: the run.
        once: lets the main process do some work, while the others wait.
        teacher: trained, alone or together with the student.
        given: what the user named as student; a network given as an object is needed to read it back.
    """
    config = job.config
    own = dataclasses.replace(job, config=later_config(config))
    object_given = None if isinstance(given, str) else given
    artefact = load_artefact(job.folder / "student", object_given)
    before = job.accuracy(artefact.network.to(job.device))
    epochs = config.prune_epochs or max(1, plan.epochs // 2)
    accuracies: list[float] = []
    curves: dict[str, list[float | None]] = {}
    for step in range(config.prune_steps):
        name = f"pruned{step}"
        folder = job.folder / "checkpoints" / name / CUT
        once(functools.partial(_cut, artefact, folder, job))
        artefact = load_artefact(folder, object_given)
        recovery, _ = distill_network(artefact.network, teacher, Schedule(name, plan.lr / 2, epochs), own)
        curves = recovery.figures
        accuracies.append(job.accuracy(artefact.network))
    history: list[dict[str, Any]] = artefact.facts["pruning"]
    if job.accelerator.is_main_process:
        facts = {**artefact.facts, "accuracy": accuracies[-1]}
        save_artefact(job.folder / "pruned", dataclasses.replace(artefact, facts=facts))
    macs = (history[0]["macs"][0], history[-1]["macs"][1])
    return {
        "accuracy": accuracies[-1],
        "accuracy_before": before,
        "accuracies": accuracies,
        "macs": list(macs),
        "curves": curves,
        "epochs": config.prune_steps * epochs,
        "note": f"{1 - macs[1] / macs[0]:.0%} fewer MACs in {config.prune_steps} step(s), accuracy {before:.1%} -> "
        f"{accuracies[-1]:.1%}",
    }


def _cut(artefact: Artefact, folder: Path, job: Job) -> None:
    """Write what pruning by one step leaves to ``folder``, unless an earlier start did.

    A latency is never measured twice alike, and neither are gradients on every device: a recovery goes on with the
    very widths that it was begun with, and all processes train the same ones.
    """
    if (folder / "model.json").is_file():
        return
    config, network, size = job.config, artefact.network.cpu(), job.preprocessing.size
    cut = prune(
        network,
        image_size=size,
        goal=goal_of_share(config, config.prune_share, network, size, len(job.data.classes)),
        criterion=config.prune_criterion,
        scope=config.prune_scope,
        round_to=config.round_to,
        batches=_batches(job) if config.prune_criterion == "taylor" else None,
    )
    entry = {**cut.history, "macs": list(cut.macs)}
    facts = {**artefact.facts, "pruning": [*artefact.facts.get("pruning", []), entry]}
    facts.pop("accuracy", None)  # not known any more
    architecture = cut.architecture(artefact.architecture)
    save_artefact(folder, dataclasses.replace(artefact, network=cut.network, architecture=architecture, facts=facts))


def _batches(job: Job) -> Any:
    """A few training batches, for criteria that need gradients."""
    for number, batch in enumerate(job.train_batches()(0)):
        if number == 8:
            return
        yield batch.image, batch.target
