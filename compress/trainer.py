"""The one training loop: whatever a module's named loss terms are, it minimises their sum.

A task is a module that holds everything trainable and whose forward returns named scalar terms.  Each epoch is a pure
function of the previous epoch's checkpoint: random streams start anew from (seed, name, epoch), so a run that was
killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import DataLoader

from iekd.compress.clipping import Group, clip, clip_groups
from iekd.compress.host_memory import freed_memory_kept
from iekd.compress.observer import Observer
from iekd.compress.pace import Pace, set_pace
from iekd.compress.training_state import Figures, History, resume, save
from iekd.errors import DivergenceError, InputError


class Batches(Protocol):
    """Gives the batches of an epoch, a pure function of its number."""

    def __call__(self, epoch: int) -> DataLoader[Any]:
        """The loader of epoch ``epoch``, counted from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast to train."""

    epochs: int
    lr: float
    """At its peak; warmed up linearly over the first tenth of the steps (at most 5 epochs), then a half cosine to 0."""
    milestones: tuple[float, ...] = ()
    """Shares of the training after each of which the rate falls to a tenth; without warm-up or cosine where given."""
    weight_decay: float = 0.02
    optimizer: str = "adamw"
    clip_norm: float | None = 5.0
    seed: int = 0


def fit(
    task: nn.Module,
    batches: Batches,
    settings: FitSettings,
    *,
    name: str,
    folder: Path,
    accelerator: Accelerator,
    observer: Observer,
    inputs: Callable[[Any], tuple[Any, ...]] = lambda batch: tuple(batch),
    evaluate: Callable[[], Figures] | None = None,
    events: Path | None = None,
    apart: Sequence[Group] = (),
    pace: Pace | None = None,
) -> History:
    """Train ``task`` in place, going on from ``folder``'s checkpoint where there is one.

    Args:
        task: forward(*inputs(batch)) returns named scalar loss terms.
        batches: the loader of each epoch.
        settings: epochs, learning rate and so on.
        name: of the stage, for logs and messages.
        folder: for ``last.pt`` and ``best.pt`` (highest ``accuracy`` that ``evaluate`` reported).
        accelerator: device, precision, processes.
        observer: told of steps and epochs.
        inputs: turns a batch (already on the device) into the task's arguments, outside of autograd's view of the task.
        evaluate: called after each epoch, in eval mode; its figures are logged.
        events: folder for TensorBoard.
        apart: parameters whose gradients are clipped by norms of their own; all others are clipped together.
        pace: parameters that learn at a rate of their own; None: none.

    Raises:
        DivergenceError: a term stopped being finite; names it, and the last good checkpoint.
    """
    task.to(accelerator.device).to(memory_format=torch.channels_last)  # halves the time of convolutions on CPUs
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise ValueError(f"{name}: nothing to train")
    optimizer = create_optimizer_v2(task, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay)
    if pace is not None:
        set_pace(optimizer, pace)
    history = resume(folder / "last.pt", task, optimizer, accelerator)
    first = history.epochs
    wrapped, optimizer = accelerator.prepare(task, optimizer)
    groups = clip_groups(task, apart)
    loop = _Loop(wrapped, optimizer, groups, settings, name, folder, accelerator, observer, inputs)
    with (
        freed_memory_kept(accelerator.device),
        _Events(events if accelerator.is_main_process else None, first) as writer,
    ):
        for epoch in range(first, settings.epochs):
            seed_everything(settings.seed, name, epoch)
            loader = accelerator.prepare(batches(epoch))
            _refuse_no_batches(loader, accelerator, name)
            if epoch == first:
                observer.stage_started(name, settings.epochs * len(loader))
            task.train()
            figures = loop.epoch(epoch, loader)
            if evaluate is not None:
                task.eval()
                figures |= evaluate()
            history.append(figures)
            if accelerator.is_main_process:
                save(folder, task, optimizer, history, accelerator.scaler)
                writer.add(epoch, figures)
            accelerator.wait_for_everyone()
            observer.epoch_finished(name, epoch, figures)
    accelerator.free_memory()
    task.eval()
    return history


def _refuse_no_batches(loader: DataLoader[Any], accelerator: Accelerator, name: str) -> None:
    """Of several processes each takes batches of its own: where none has one, nothing would be trained.

    Raises:
        InputError: there is no batch for each.
    """
    if not len(loader):
        raise InputError(
            f"{name}: there are fewer images than a batch for each of {accelerator.num_processes} processes.",
            "Give a smaller --batch-size, or fewer processes.",
        )


@dataclass(frozen=True)
class _Loop:
    """What every step of one training needs."""

    task: nn.Module
    optimizer: Any
    groups: Sequence[Group]
    settings: FitSettings
    name: str
    folder: Path
    accelerator: Accelerator
    observer: Observer
    inputs: Callable[[Any], tuple[Any, ...]]

    def epoch(self, epoch: int, loader: DataLoader[Any]) -> Figures:
        """One pass; returns the mean of each term, over the steps that had it, of their sum, and of clipped steps."""
        steps = len(loader)
        totals: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        for step, batch in enumerate(loader):
            _set_lr(self.optimizer, learning_rate(self.settings, epoch * steps + step, steps))
            terms = self.step(batch, epoch, step)
            counts.update(terms.keys())
            for key, term in terms.items():
                totals[key] = totals.get(key, torch.zeros_like(term)) + term
            detail = f"epoch {epoch + 1}/{self.settings.epochs}  loss {terms['loss'].item():.3f}"
            self.observer.stage_advanced(self.name, epoch * steps + step + 1, detail)
        means = {key: self.accelerator.reduce(total / counts[key], "mean").item() for key, total in totals.items()}
        return {**means, "lr": learning_rate(self.settings, epoch * steps, steps)}

    def step(self, batch: Any, epoch: int, step: int) -> dict[str, Tensor]:
        """One update; returns the terms, their sum ``loss``, and ``clipped``: 1 or 0; detached, float64."""
        terms: dict[str, Tensor] = self.task(*self.inputs(batch))
        refuse_non_finite(terms, self.name, epoch, step, self.folder)
        loss = torch.stack(list(terms.values())).sum()
        self.accelerator.backward(loss)
        logged = {**terms, "loss": loss}
        if self.settings.clip_norm is not None:
            self.accelerator.unscale_gradients()
            logged["clipped"] = clip(self.groups, self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {key: value.detach().double() for key, value in logged.items()}


def learning_rate(settings: FitSettings, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to zero; or steps down at the milestones."""
    total = settings.epochs * steps_per_epoch
    if settings.milestones:
        return float(settings.lr * 0.1 ** sum(step >= share * total for share in settings.milestones))
    warmup = min(max(1, total // 10), 5 * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


def seed_everything(seed: int, name: str, epoch: int) -> None:
    """Start every random stream anew from what identifies this epoch."""
    mixed = zlib.crc32(f"{seed}/{name}/{epoch}".encode())
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def refuse_non_finite(terms: dict[str, Tensor], name: str, epoch: int, step: int, folder: Path) -> None:
    """Raise DivergenceError, naming the term and the last good checkpoint in ``folder``, where one is not finite."""
    values = torch.stack([term.detach().float() for term in terms.values()])
    if bool(torch.isfinite(values).all()):
        return
    bad = next(key for key, term in terms.items() if not bool(torch.isfinite(term)))
    kept = f"The last good checkpoint is {folder / 'last.pt'}." if (folder / "last.pt").exists() else ""
    raise DivergenceError(
        f"loss term '{bad}' of stage '{name}' became {terms[bad].item()} in epoch {epoch + 1}, step {step + 1}.",
        f"{kept}  Try a smaller learning rate or weight for it, in another --out.".strip(),
    )


class _Events:
    """TensorBoard events, or nothing where no folder is given; steps already written by a killed run are dropped."""

    def __init__(self, folder: Path | None, first_epoch: int) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def __enter__(self) -> _Events:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, epoch: int, figures: Figures) -> None:
        """Write one epoch."""
        if self._writer is not None:
            for key, value in figures.items():
                self._writer.add_scalar(key, value, epoch)
            self._writer.flush()
