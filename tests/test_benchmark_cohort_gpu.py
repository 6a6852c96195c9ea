"""Lanes on a GPU: a captured step is the step, and every row of the table of methods can be captured."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from iekd.compress.distill import Distillation
from iekd.compress.objectives import ObjectiveSettings, build_mutual, build_objective
from iekd.compress.teacher import Supervised
from iekd.compress.together import networks_apart
from iekd.compress.trainer import FitSettings
from iekd.models.registry import build, resolve
from iekd.models.taps import Features, Tapped

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from cohort import train_side_by_side
from lane import Board, Lane, Runner, Seen
from resident import Resident

pytestmark = pytest.mark.gpu
ROWS = (
    "kd",
    "dkd",
    "dist",
    "lskd",
    "ats",
    "at",
    "ft",
    "od",
    "vkd",
    "ie-at",
    "ie-ft",
    "ie-od+kd",
    "ie-vkd",
    "ie-ft+dkd",
)
SETTINGS = FitSettings(epochs=2, lr=1e-3, weight_decay=5e-4, optimizer="sgd", seed=1)
SAME = 0.05
"""Distance over path length that rounding explains: at this rate noise of 1e-7 in the weights ends at 0.006, of 1e-6 at
0.02 (at a rate of 0.05 already at 0.16); a rate off by a tenth is at 0.11, another order of images at 0.68."""


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


def data() -> Resident:
    random = np.random.default_rng(0)
    return Resident.load(random.integers(0, 255, (96, 32, 32, 3), np.uint8), np.arange(96) % 10, torch.device("cuda"))


def network(seed: int, name: str = "cifar_resnet20") -> Tapped:
    torch.manual_seed(seed)
    return Tapped(build(resolve(name), 10, 32)).cuda()


def bf16() -> Any:
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


def labels(seen: Seen) -> tuple[Any, ...]:
    return seen.images, seen.targets


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in full float32 and always in the same order, so that two trainings can be compared."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@torch.no_grad()
def distance(one: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """How far two trainings from the same start lie apart, as a share of the way that the first went."""
    weights = zip(one.parameters(), other.parameters(), start.parameters(), strict=True)
    return float(torch.stack([(a - b).norm() / (a - c).norm() for a, b, c in weights]).mean())


@pytest.mark.usefixtures("exact")
def test_captured_steps_are_the_steps() -> None:
    start = Supervised(network(0).network)
    task, other, astray = (copy.deepcopy(start) for _ in range(3))
    train_side_by_side([lane(task)], data(), None, 32, contextlib.nullcontext)
    train_side_by_side([lane(astray, seed=2)], data(), None, 32, contextlib.nullcontext)
    board = Board(data(), None, contextlib.nullcontext)
    runner = Runner(lane(other), board, 32)
    for epoch in range(SETTINGS.epochs):
        board.show(epoch)
        other.train()
        runner.begin(epoch)
        torch.cuda.synchronize()
        for _ in range(runner.steps):
            runner.step()
        torch.cuda.synchronize()
    assert distance(task, other, start) < SAME
    assert distance(task, astray, start) > 5 * SAME
    assert int(task.state_dict()["network.stem.1.num_batches_tracked"]) == SETTINGS.epochs * runner.steps


@pytest.mark.usefixtures("exact")
def test_a_captured_lane_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    def cut(epoch: int, losses: dict[str, float]) -> None:
        raise KeyboardInterrupt

    start = Supervised(network(0).network)
    whole, first, rest = (copy.deepcopy(start) for _ in range(3))
    train_side_by_side([lane(whole)], data(), None, 32, contextlib.nullcontext)
    lanes = [lane(first)]
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(lanes, data(), None, 32, contextlib.nullcontext, told=cut, kept=tmp_path, keep_every=0)
    train_side_by_side([lane(rest)], data(), None, 32, contextlib.nullcontext, kept=tmp_path)
    assert distance(whole, first, start) > 5 * SAME
    assert distance(whole, rest, start) < SAME


def lane(task: Supervised, seed: int = 1) -> Lane:
    return Lane("lane", task, seed, SETTINGS, labels)


@pytest.mark.parametrize("form", ["distance", "cosine", "cka"])
def test_every_row_can_be_captured(form: str) -> None:
    teacher = network(9, "cifar_resnet32").eval().requires_grad_(False)
    lanes = [taught(row, teacher, form) for row in (ROWS if form == "distance" else ("ie-ft", "ie-at+kd"))]
    for name in ("dml", "ie-dml"):
        task = build_mutual(name, [network(1), network(2)], image_size=32, settings=ObjectiveSettings())
        lanes.append(Lane(name, task, 1, SETTINGS, labels, networks_apart(task)))
    told: list[dict[str, float]] = []
    train_side_by_side(lanes, data(), teacher, 32, bf16, told=lambda _, losses: told.append(losses))
    assert [set(losses) for losses in told] == [{lane.name for lane in lanes}] * SETTINGS.epochs


def taught(row: str, teacher: Tapped, form: str) -> Lane:
    student = network(3)
    objective = build_objective(
        row,
        teacher=teacher.shapes(32),
        student=student.shapes(32),
        classes=10,
        settings=ObjectiveSettings(explore_form=form),
    ).cuda()
    pretraining = objective.pretraining()
    if pretraining is not None:
        pretraining.requires_grad_(False)
    with torch.no_grad():
        images = torch.randn(32, 3, 32, 32, device="cuda")
        objective.prepare(student.eval()(images), Features(*teacher(images)))

    def inputs(seen: Seen) -> tuple[Any, ...]:
        assert seen.teacher is not None
        record = objective.record(seen.teacher)
        return (seen.images, seen.targets, record.logits, *record.codes)

    return Lane(row, Distillation(student, objective), 1, SETTINGS, inputs)
