"""The teacher stage: a network from what the user named, fine-tuned to the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.job import Job
from iekd.compress.shared import shared_facts
from iekd.compress.trainer import FitSettings, fit, seed_everything
from iekd.compress.training_state import History, load_best
from iekd.errors import EnvironmentMissingError, InputError
from iekd.models.checkpoint import (
    Artefact,
    load_artefact,
    load_state,
    own_copy,
    read_description,
    read_weights,
    save_artefact,
)
from iekd.models.ensemble import Ensemble, member_names
from iekd.models.hub import load_pretrained
from iekd.models.registry import Architecture, build, check_classes, ensemble_of, is_artefact, resolve


class Supervised(nn.Module):
    """Cross-entropy on the labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The one term ``task``; of an ensemble one a member, so that each learns by itself."""
        if isinstance(self.network, Ensemble):
            return {
                f"task{number}": F.cross_entropy(member(images).float(), targets)
                for number, member in enumerate(self.network.members)
            }
        return {"task": F.cross_entropy(self.network(images).float(), targets)}


def decide_weights(given: str | nn.Module, weights: str, classes: int, image_size: int) -> tuple[str, str]:
    """Where a network's first weights come from, decided once a run: (origin, why ``auto`` had to fall back).

    The origin is ``artefact``, ``object``, ``file``, ``hub`` or ``scratch``.

    Raises:
        InputError: unknown model, or the origin asked for does not exist.
        EnvironmentMissingError: ``hub`` was asked for and is out of reach.
    """
    if isinstance(given, nn.Module):
        return "object", ""
    if len(member_names(given)) > 1:
        return _decide_for_ensemble(given, weights, classes, image_size)
    if is_artefact(given):
        return "artefact", ""
    architecture = resolve(given)
    if weights == "scratch":
        return "scratch", ""
    if weights not in ("auto", "hub"):
        if not Path(weights).is_file():
            raise InputError(f"no weights at '{weights}'.", "Give auto, hub, scratch, or the path of a file.")
        return "file", ""
    try:
        load_pretrained(architecture, classes, image_size)
    except (InputError, EnvironmentMissingError) as error:
        if weights == "hub":
            raise
        return "scratch", error.message.rstrip(".")
    return "hub", ""


def _decide_for_ensemble(given: str, weights: str, classes: int, image_size: int) -> tuple[str, str]:
    """One origin for all members: they are trained, or taken as they are, together."""
    if weights not in ("auto", "hub", "scratch"):
        raise InputError("one file of weights cannot serve several teachers.", "Give auto, hub or scratch.")
    found = [decide_weights(part, weights, classes, image_size) for part in member_names(given)]
    origins = {origin for origin, _ in found}
    if "artefact" in origins and len(origins) > 1:
        raise InputError(f"'{given}' mixes artefacts and names.", "Give artefacts only, or names only.")
    why = next((reason for _, reason in found if reason), "")
    return (origins.pop(), why) if len(origins) == 1 else ("scratch", why)


def first_network(
    given: str | nn.Module, origin: str, weights: str, job: Job, name: str
) -> tuple[nn.Module, Architecture]:
    """The network to start from, by the origin decided before; fresh weights follow from the seed.

    One that was given as an object is copied: a run leaves its caller's networks as they are.

    Raises:
        InputError: weights of another architecture or class count, or a model that does not fit the data.
    """
    size, classes = job.preprocessing.size, job.classes
    seed_everything(job.config.seed, f"{name}-init", 0)
    if isinstance(given, nn.Module):
        check_classes(given, type(given).__name__, classes, size)
        return own_copy(given), Architecture("object", f"{type(given).__module__}.{type(given).__qualname__}")
    parts = member_names(given)
    if len(parts) > 1:
        members = [first_network(part, origin, weights, job, f"{name}{at}") for at, part in enumerate(parts)]
        return Ensemble([network for network, _ in members]), ensemble_of([own for _, own in members])
    if origin == "artefact":
        return _from_artefact(Path(given), job)
    architecture = resolve(given)
    if origin == "hub":
        return load_pretrained(architecture, classes, size), architecture
    network = build(architecture, classes, size)
    if origin == "file":
        load_state(network, read_weights(Path(weights)), weights, adapt_head=job.config.adapt_head)
    return network, architecture


def _from_artefact(folder: Path, job: Job) -> tuple[nn.Module, Architecture]:
    require_classes(folder, job.data.classes)
    artefact = load_artefact(folder)
    return artefact.network, artefact.architecture


def require_classes(folder: Path, classes: Sequence[str]) -> None:
    """Raise InputError unless the artefact in ``folder`` was trained for these classes."""
    theirs = tuple(read_description(folder)["classes"])
    if theirs != tuple(classes):
        raise InputError(
            f"{folder} was trained for {len(theirs)} classes ({', '.join(theirs[:3])}, ...), "
            f"the data has {len(classes)} ({', '.join(classes[:3])}, ...).",
            "Use data of the same classes, or another network.",
        )


def train_network(network: nn.Module, *, name: str, epochs: int, lr: float, job: Job, batches: Any = None) -> History:
    """Train ``network`` in place on the labels alone; checkpoints under ``checkpoints/NAME``."""
    settings = FitSettings(epochs=epochs, lr=lr, weight_decay=job.config.weight_decay, seed=job.config.seed)
    checkpoints = job.folder / "checkpoints" / name
    task = Supervised(network)
    history = fit(
        task,
        batches or job.train_batches(),
        settings,
        name=name,
        folder=checkpoints,
        accelerator=job.accelerator,
        observer=job.observer,
        inputs=lambda batch: (batch.image, batch.target),
        evaluate=lambda: {"accuracy": job.accuracy(network, mixed=True)},
        events=job.folder / "events" / name,
        apart=[list(member.parameters()) for member in network.members] if isinstance(network, Ensemble) else (),
    )
    if job.config.keep == "best":
        load_best(task, checkpoints)
    return history


def make_teacher(given: str | nn.Module, origin: str, epochs: int, lr: float, job: Job) -> dict[str, Any]:
    """Stage ``teacher``: write the artefact ``teacher/`` and say what it reached."""
    network, architecture = first_network(given, origin, job.config.teacher_weights, job, "teacher")
    network.to(job.device)
    history = train_network(network, name="teacher", epochs=epochs, lr=lr, job=job) if epochs else History()
    found = shared_facts(job, "accuracy", lambda: {"accuracy": job.accuracy(network)})
    accuracy: float = found["accuracy"]
    artefact = Artefact(
        network, architecture, job.data.classes, job.preprocessing, {"accuracy": accuracy, "origin": origin}
    )
    if job.accelerator.is_main_process:
        save_artefact(job.folder / "teacher", artefact)
    note = f"accuracy {accuracy:.1%}, " + (f"{epochs} epochs from {origin}" if epochs else f"as given ({origin})")
    return {"accuracy": accuracy, "curves": history.figures, "epochs": epochs, "note": note}
