"""What IE-KD adds to a training step: our step against the bare loop, interleaved in one run.

The bare loop is what any logit distillation must do: the teacher's forward without gradient, the student's forward,
cross-entropy and KL on the logits, backward, optimiser step.  Ours adds the factor encoders, the channel split and the
two IE terms.  Two variants of ours: ``live`` runs the teacher in every step; ``cached`` has its answers at hand, as all
passes over the recurring views but the first do.

    python benchmarks/training_step.py [--teacher resnet50] [--student mobilenetv2_100] [--size 64] [--batch 64]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn

from iekd.compress.distill import Distillation
from iekd.compress.objectives.build import build_objective
from iekd.compress.objectives.logits import distillation_loss
from iekd.compress.objectives.settings import ObjectiveSettings
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


def ie_steps(teacher: Tapped, student: Tapped, images: torch.Tensor, targets: torch.Tensor, size: int) -> list[Step]:
    objective = build_objective(
        "ie-ft+kd",
        teacher=teacher.shapes(size),
        student=student.shapes(size),
        classes=CLASSES,
        settings=ObjectiveSettings(),
    )
    pretraining = objective.pretraining()
    assert pretraining is not None
    pretraining.requires_grad_(False)
    task = Distillation(student, objective).to(memory_format=torch.channels_last).train()
    optimizer = optimizer_for(task)
    with torch.no_grad():
        kept = objective.record(teacher(images))

    def update(logits: torch.Tensor, codes: tuple[torch.Tensor, ...]) -> None:
        terms = task(images, targets, logits, *codes)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def live() -> None:
        with torch.no_grad():
            record = objective.record(teacher(images))
        update(record.logits, record.codes)

    return [live, lambda: update(kept.logits, kept.codes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--student", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=64)
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
    steps["live"], steps["cached"] = ie_steps(Tapped(teacher).eval(), Tapped(ours), images, targets, arguments.size)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 2):
        order = list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]
        for name in order:  # rotated: whoever comes after the cheapest step finds another cache
            step = steps[name]
            start = time.perf_counter()
            step()
            if turn >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:7} {1e3 * value:8.1f} ms a step, {medians['bare'] / value:.3f} of the bare throughput")
    print(f"RESULT iekd_over_bare={medians['bare'] / medians['live']:.3f}")


if __name__ == "__main__":
    main()
