"""What every row of the table of methods shares: recipe, images, device; how a network is made, trained and scored."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from resident import Resident
from table_settings import Settings, claim, settings_of, weights_of_teacher
from torch import nn

from iekd.compress.clipping import Group
from iekd.compress.observer import Observer
from iekd.compress.trainer import FitSettings, fit, seed_everything
from iekd.models.registry import build, resolve
from iekd.models.taps import BEFORE, Tapped

CLASSES = 10
LAST = -1
"""The last map before pooling, where rows are tapped unless they say otherwise."""


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
    "medium": Recipe(30, 30, 5, 128, 0.1, "sgd", 5e-4, (), None),
    "short": Recipe(5, 2, 5, 64, 0.1, "sgd", 5e-4, (), 5, train_limit=10_000),
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

    def settings_of(self, name: str) -> Settings:
        """What the row or training of that name hangs on."""
        return settings_of(self.arguments, self.recipe, name, weights_of_teacher(self.folder))

    def claim(self, name: str) -> None:
        """See :func:`table_settings.claim`."""
        claim(self.folder / "checkpoints" / name, self.settings_of(name))

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
        self,
        task: nn.Module,
        name: str,
        epochs: int,
        seed: int,
        inputs: Any,
        data: Resident | None = None,
        apart: Sequence[Group] = (),
    ) -> dict[str, float]:
        """Train ``task``; a stopped training goes on from its last epoch.  Returns the share of clipped steps.

        Raises:
            RunFolderError: the stopped training was of other settings.
        """
        self.claim(name)
        views = self.recipe.views if data is None else None
        batches: Any = lambda epoch: (data or self.train).epoch(epoch, self.recipe.batch, seed, views)  # noqa: E731
        history = fit(
            task,
            batches,
            self.recipe.fit(epochs, seed),
            name=name,
            folder=self.folder / "checkpoints" / name,
            accelerator=self.accelerator,
            observer=Told(name, epochs) if self.arguments.verbose else Observer(),
            inputs=inputs,
            apart=apart,
        )
        return {
            key: mean(value for value in values if value is not None)
            for key, values in history.figures.items()
            if key == "clipped"
        }

    def tapped(self, name: str, seed: int, role: str, tap: int | str = LAST) -> Tapped:
        """A fresh network whose weights follow from the seed, tapped at one stage."""
        seed_everything(seed, f"{role}-init", 0)
        network = build(resolve(name), CLASSES, self.train.size)
        if self.arguments.compile and not str(tap).startswith(BEFORE):  # a hook of each forward, which it would miss
            network.forward_intermediates = torch.compile(network.forward_intermediates)  # type: ignore[assignment, arg-type]
        tapped = Tapped(network, (tap,), self.train.size)
        return tapped.to(self.accelerator.device).to(memory_format=torch.channels_last)


class Told(Observer):
    """A line an epoch."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs, self.start = name, epochs, time.perf_counter()

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        """See :class:`Observer`."""
        seconds = time.perf_counter() - self.start
        print(f"{name} epoch {epoch + 1}/{self.epochs} loss {figures['loss']:.3f} {seconds:.0f} s", flush=True)
