"""Lanes on a GPU: a captured step is the step, and every row of the table of methods can be captured."""

from __future__ import annotations

import contextlib
import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iekd.compress.distill import Distillation
from iekd.compress.objectives import ObjectiveSettings, build_mutual, build_objective
from iekd.compress.teacher import Supervised
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
SETTINGS = FitSettings(epochs=2, lr=0.05, weight_decay=5e-4, optimizer="sgd", seed=1)


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


def test_captured_steps_are_the_steps() -> None:
    task = Supervised(network(0).network)
    other = copy.deepcopy(task)
    lane = Lane("captured", task, 1, SETTINGS, labels)
    train_side_by_side([lane], data(), None, 32, contextlib.nullcontext)
    board = Board(data(), None, contextlib.nullcontext)
    runner = Runner(Lane("eager", other, 1, SETTINGS, labels), board, 32)
    for epoch in range(SETTINGS.epochs):
        board.show(epoch)
        other.train()
        runner.begin(epoch)
        torch.cuda.synchronize()
        for _ in range(runner.steps):
            runner.step()
        torch.cuda.synchronize()
    for (name, one), two in zip(task.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-3), name
    assert int(task.state_dict()["network.bn1.num_batches_tracked"]) == SETTINGS.epochs * runner.steps


@pytest.mark.parametrize("form", ["distance", "cosine", "cka"])
def test_every_row_can_be_captured(form: str) -> None:
    teacher = network(9, "cifar_resnet32").eval().requires_grad_(False)
    lanes = [taught(row, teacher, form) for row in (ROWS if form == "distance" else ("ie-ft", "ie-at+kd"))]
    for name in ("dml", "ie-dml"):
        task = build_mutual(name, [network(1), network(2)], image_size=32, settings=ObjectiveSettings())
        lanes.append(Lane(name, task, 1, SETTINGS, labels))
    told: list[dict[str, float]] = []
    train_side_by_side(lanes, data(), teacher, 32, bf16, told=lambda _, losses: told.append(losses))
    assert [set(losses) for losses in told] == [{lane.name for lane in lanes}] * SETTINGS.epochs


def test_a_captured_lane_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    def cut(epoch: int, losses: dict[str, float]) -> None:
        raise KeyboardInterrupt

    first = Supervised(network(0).network)
    other = copy.deepcopy(first)
    whole = copy.deepcopy(first)
    train_side_by_side([Lane("lane", whole, 1, SETTINGS, labels)], data(), None, 32, contextlib.nullcontext)
    lanes = [Lane("lane", first, 1, SETTINGS, labels)]
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(lanes, data(), None, 32, contextlib.nullcontext, told=cut, kept=tmp_path, keep_every=0)
    lanes = [Lane("lane", other, 1, SETTINGS, labels)]
    train_side_by_side(lanes, data(), None, 32, contextlib.nullcontext, kept=tmp_path)
    for (name, one), two in zip(whole.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-3), name


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
