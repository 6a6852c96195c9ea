"""The pruning stage: cut a share of the student, let it recover under the teacher, again and again."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from iekd.compress.distill import Schedule, distill_network, later_config
from iekd.compress.job import Job
from iekd.compress.plan import Plan
from iekd.compress.prune import prune
from iekd.compress.pruning.share import goal_of_share
from iekd.compress.targets import TARGETS
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact


def prune_student(plan: Plan, job: Job, teacher: nn.Module, given: str | nn.Module) -> dict[str, Any]:
    """Stage ``prune``: write the artefact ``pruned/``.

    Every step prunes what the step before left, to the same share of what remains, and is then distilled from the
    teacher: pruning everything at once is recovered from less well (docs/results.md).

    Args:
        plan: learning rate and epochs.
        job: the run.
        teacher: trained, alone or together with the student.
        given: what the user named as student; a network given as an object is needed to read it back.
    """
    config = job.config
    own = dataclasses.replace(job, config=later_config(config))
    artefact = load_artefact(job.folder / "student", None if isinstance(given, str) else given)
    before = job.accuracy(artefact.network.to(job.device))
    history: list[dict[str, Any]] = []
    epochs = config.prune_epochs or max(1, plan.epochs // 2)
    accuracies: list[float] = []
    curves: dict[str, list[float | None]] = {}
    for step in range(config.prune_steps):
        network, size = artefact.network.cpu(), job.preprocessing.size
        cut = prune(
            network,
            image_size=size,
            goal=goal_of_share(config, config.prune_share, network, size, len(job.data.classes)),
            criterion=config.prune_criterion,
            scope=config.prune_scope,
            round_to=TARGETS[config.target].round_to,
            batches=_batches(job) if config.prune_criterion == "taylor" else None,
        )
        history.append({**cut.history, "macs": [cut.macs_before, cut.macs_after]})
        schedule = Schedule(f"pruned{step}", plan.lr / 2, epochs)
        recovery, _ = distill_network(cut.network, teacher, schedule, own)
        curves = recovery.figures
        artefact = dataclasses.replace(
            artefact, network=cut.network, architecture=cut.architecture(artefact.architecture)
        )
        accuracies.append(job.accuracy(cut.network))
    facts = {**artefact.facts, "accuracy": accuracies[-1], "pruning": history}
    if job.accelerator.is_main_process:
        save_artefact(
            job.folder / "pruned",
            Artefact(artefact.network, artefact.architecture, job.data.classes, job.preprocessing, facts),
        )
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


def _batches(job: Job) -> Any:
    """A few training batches, for criteria that need gradients."""
    for number, batch in enumerate(job.train_batches()(0)):
        if number == 8:
            return
        yield batch.image, batch.target
