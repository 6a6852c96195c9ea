"""What IE-KD adds to a training step: our step against the bare loop, interleaved in one run.

The bare loop is what any logit distillation must do: the teacher's forward without gradient, the student's forward,
cross-entropy and KL on the logits, backward, optimiser step.  Ours has what the objective adds (by default the factor
encoders, the channel split and the two IE terms), and what the real loop does in every step and the bare one need not:
it looks for terms that are not finite, and clips the gradients.  Two variants of ours: ``live`` runs the teacher in
every step; ``cached`` has its answers at hand, as all passes over the recurring views but the first do.

    python benchmarks/training_step.py [--teacher resnet50] [--student mobilenetv2_100] [--size 224] [--batch 16]
                                       [--objective ie-vkd+kd] [--explore-form cka]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn

from iekd.compress.clipping import clip, clip_groups
from iekd.compress.config_input import make_config
from iekd.compress.distill import Distillation
from iekd.compress.host_memory import freed_memory_kept
from iekd.compress.objectives.base import Objective
from iekd.compress.objectives.build import build_objective, taps_for
from iekd.compress.objectives.lift import FORMS
from iekd.compress.objectives.logits import distillation_loss
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.trainer import FitSettings, refuse_non_finite
from iekd.errors import IekdError
from iekd.models.registry import Architecture, build
from iekd.models.taps import Tapped

CLASSES = 10
Step = Callable[[], None]


def optimizer_for(module: nn.Module) -> torch.optim.Optimizer:
    return create_optimizer_v2(module, opt="adamw", lr=1e-3, weight_decay=0.02)


def bare_step(teacher: nn.Module, student: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Step:
    optimizer = optimizer_for(student)

    def step() -> None:
        with torch.no_grad():
            answer = teacher(images)
        logits = student(images)
        loss = F.cross_entropy(logits, targets) + distillation_loss(logits, answer, 4.0)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_steps(
    objective: Objective, teacher: Tapped, student: Tapped, images: torch.Tensor, targets: torch.Tensor
) -> list[Step]:
    pretraining = objective.pretraining()
    if pretraining is not None:
        pretraining.requires_grad_(False)
    with torch.no_grad():
        answer = teacher(images)
        objective.prepare(student.eval()(images), answer)
        kept = objective.record(answer)
    task = Distillation(student, objective).to(memory_format=torch.channels_last).train()
    optimizer, groups = optimizer_for(task), clip_groups(task)
    limit = FitSettings(epochs=1, lr=1e-3).clip_norm
    assert limit is not None

    def update(logits: torch.Tensor, codes: tuple[torch.Tensor, ...]) -> None:
        terms = task(images, targets, logits, *codes)
        refuse_non_finite(terms, "ours", 0, 0, Path())
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        clip(groups, limit)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def live() -> None:
        with torch.no_grad():
            record = objective.record(teacher(images))
        update(record.logits, record.codes)

    return [live, lambda: update(kept.logits, kept.codes)]


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, ``rounds`` times, after two rounds that warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        order = list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]
        for name in order:  # rotated: whoever comes after the cheapest step finds another cache
            start = time.perf_counter()
            steps[name]()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--student", default="mobilenetv2_100")
    parser.add_argument("--objective", default="ie-ft+kd", help="with --explore-form, as iekd-compress takes them")
    parser.add_argument("--explore-form", default="distance", choices=FORMS)
    parser.add_argument("--tap", default="-1", help="as iekd-compress takes it; commas between several stages")
    parser.add_argument("--size", type=int, default=64, help="of the images, pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    networks = [build(Architecture("timm", name), CLASSES, arguments.size) for name in
                (arguments.teacher, arguments.student, arguments.student)]  # fmt: skip
    teacher, bare, ours = (network.to(memory_format=torch.channels_last).train() for network in networks)
    teacher.eval().requires_grad_(False)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    targets = torch.randint(0, CLASSES, (arguments.batch,))
    steps = {"bare": bare_step(teacher, bare, images, targets)}
    taps = taps_for(arguments.objective, make_config({"teacher": "t", "student": "s", "tap": arguments.tap}).taps)
    tapped, student = Tapped(teacher, taps, arguments.size).eval(), Tapped(ours, taps, arguments.size)
    objective = build_objective(
        arguments.objective,
        teacher=tapped.shapes(arguments.size),
        student=student.shapes(arguments.size),
        classes=CLASSES,
        settings=ObjectiveSettings(explore_form=arguments.explore_form),
    )
    steps["live"], steps["cached"] = our_steps(objective, tapped, student, images, targets)
    with freed_memory_kept(torch.device("cpu")):  # as the trainer does; for both loops alike
        seconds = interleaved(steps, arguments.rounds)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:7} {1e3 * value:8.1f} ms a step, {medians['bare'] / value:.3f} of the bare throughput")
    print(f"RESULT iekd_over_bare={medians['bare'] / medians['live']:.3f}")


if __name__ == "__main__":
    try:
        main()
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
