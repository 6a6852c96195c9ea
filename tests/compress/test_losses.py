"""The losses against the formulas written out in float64, and what must hold of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iekd.compress.objectives.build import build_objective
from iekd.compress.objectives.distance import factor_distance
from iekd.compress.objectives.logits import distillation_loss
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.split import split_channels
from iekd.errors import InputError
from iekd.models.taps import Features, TapShape

TEACHER, STUDENT = (TapShape(16, 4, 4),), (TapShape(12, 4, 4),)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_distance(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for x, y in zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True):
        total += np.abs(x / math.sqrt((x * x).sum()) - y / math.sqrt((y * y).sum())).sum()
    return float(total / a.size * math.sqrt(a[0].size))


def naive_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = np.exp(t / temperature), np.exp(s / temperature)
        p, q = p / p.sum(), q / q.sum()
        total += float((p * np.log(p / q)).sum())
    return total / len(student) * temperature**2


def numeric_gradient(value: Any, at: np.ndarray) -> np.ndarray:
    gradient, step = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            gradient[index] += sign * value(moved) / (2 * step)
    return gradient


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 5), (2, 8, 1, 1)])
def test_the_factor_distance_is_the_formula(shape: tuple[int, ...]) -> None:
    a, b = randn(*shape), randn(*shape, seed=1).requires_grad_()
    loss = factor_distance(a, b)
    assert loss.item() == pytest.approx(naive_distance(a.numpy(), b.detach().numpy()), rel=1e-5)
    loss.backward()
    expected = numeric_gradient(lambda moved: naive_distance(a.numpy(), moved), b.detach().numpy())
    assert np.abs(b.grad.numpy() - expected).max() < 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_distillation_is_the_formula(classes: int, temperature: float) -> None:
    student, teacher = randn(3, classes).requires_grad_(), 3 * randn(3, classes, seed=1)
    loss = distillation_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(naive_kd(student.detach().numpy(), teacher.numpy(), temperature), rel=1e-4)
    loss.backward()
    expected = numeric_gradient(lambda moved: naive_kd(moved, teacher.numpy(), temperature), student.detach().numpy())
    assert np.abs(student.grad.numpy() - expected).max() < 1e-4


def test_distances_do_not_depend_on_scale_order_or_size() -> None:
    a, b = randn(4, 3, 4, 4), randn(4, 3, 4, 4, seed=1)
    here = factor_distance(a, b).item()
    assert factor_distance(5 * a, 0.1 * b).item() == pytest.approx(here, rel=1e-5)
    order, shuffle = torch.tensor([2, 0, 3, 1]), torch.randperm(48)
    assert factor_distance(a[order], b[order]).item() == pytest.approx(here, rel=1e-5)
    flat = [x.flatten(1)[:, shuffle] for x in (a, b)]
    assert factor_distance(*flat).item() == pytest.approx(here, rel=1e-5)
    wide = [randn(64, 4096, seed=seed) for seed in (2, 3)]
    narrow = [randn(64, 256, seed=seed) for seed in (4, 5)]
    assert factor_distance(*wide).item() == pytest.approx(factor_distance(*narrow).item(), rel=0.02), "size-free"
    assert factor_distance(a, a).item() == 0


def test_distances_are_bounded_by_two() -> None:
    a = torch.ones(2, 64)
    assert factor_distance(a, -a).item() == pytest.approx(2)
    assert factor_distance(1e6 * randn(8, 32), randn(8, 32, seed=1)).item() <= 2
    assert math.isfinite(factor_distance(torch.zeros(2, 8), torch.zeros(2, 8)).item())


def test_the_papers_weight_is_ours() -> None:
    """50 times the published mean at n = 2,048 is our default weight times our distance."""
    a, b = randn(4, 2048), randn(4, 2048, seed=1)
    published = naive_distance(a.numpy(), b.numpy()) / math.sqrt(2048)
    assert ObjectiveSettings().inherit_weight * factor_distance(a, b).item() == pytest.approx(50 * published, rel=1e-3)


@pytest.mark.parametrize("split", ["natural", "random"])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_the_split_parts_the_channels(split: str, fraction: float) -> None:
    inherit, explore = split_channels(12, fraction, split, 3)
    assert sorted([*inherit.tolist(), *explore.tolist()]) == list(range(12))
    assert len(inherit) == 12 * fraction
    again, _ = split_channels(12, fraction, split, 3)
    assert torch.equal(inherit, again)


def test_a_split_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(InputError, match="leaves a part empty"):
        split_channels(4, 0.05, "natural", 0)
    with pytest.raises(InputError, match="unknown split"):
        split_channels(4, 0.5, "naturall", 0)


def objective(name: str, classes: int = 5, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = ObjectiveSettings(**changes)
    return build_objective(name, teacher=TEACHER, student=STUDENT, classes=classes, settings=settings)


def answers(batch: int = 4, classes: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Features, Features, Tensor]:
    student = Features(
        randn(batch, classes).to(dtype).requires_grad_(), (randn(batch, 12, 4, 4, seed=1).to(dtype).requires_grad_(),)
    )
    teacher = Features(randn(batch, classes, seed=2).to(dtype), (randn(batch, 16, 4, 4, seed=3).to(dtype),))
    return student, teacher, torch.arange(batch) % classes


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("ce", {"task"}),
        ("kd", {"task", "kd"}),
        ("ft", {"task", "transfer"}),
        ("ie-ft", {"task", "inherit", "explore"}),
        ("ie-ft+kd", {"task", "kd", "inherit", "explore"}),
    ],
)
def test_objectives_name_their_terms_and_reach_student_and_heads(name: str, terms: set[str]) -> None:
    made, (student, teacher, targets) = objective(name), answers()
    pretraining = made.pretraining()
    if pretraining is not None:
        assert all(bool(term.isfinite()) for term in pretraining(teacher.taps).values())
        pretraining.requires_grad_(False)
    found = made(student, made.record(teacher), targets)
    assert set(found) == terms
    sum(found.values()).backward()
    assert student.logits.grad is not None
    assert (student.taps[0].grad is not None) == ("ft" in name)
    missing = [key for key, value in made.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []


def test_nothing_flows_back_into_the_teacher_s_side() -> None:
    made, (student, teacher, targets) = objective("ie-ft+kd"), answers()
    made.pretraining().requires_grad_(False)
    made.train()
    before = {key: value.clone() for key, value in made.lifts[0].auto_encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        sum(made(student, made.record(teacher), targets).values()).backward()
        optimizer.step()
    after = made.lifts[0].auto_encoder.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "batch statistics included"


def test_inheritance_pulls_and_exploration_pushes() -> None:
    made, (student, teacher, targets) = objective("ie-ft"), answers(16)
    made.pretraining().requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(60):
        terms = made(student, made.record(teacher), targets)
        optimizer.zero_grad()
        (terms["inherit"] + terms["explore"]).backward()
        optimizer.step()
        history.append((terms["inherit"].item(), -terms["explore"].item()))
    (inherit_first, explore_first), (inherit_last, explore_last) = history[0], history[-1]
    assert inherit_last < 0.8 * inherit_first
    assert explore_last > explore_first
    assert explore_last <= 2 * made.settings.explore_weight


def test_a_fraction_of_one_is_the_plain_transfer_and_zero_is_exploration_alone() -> None:
    student, teacher, targets = answers()
    whole, plain = objective("ie-ft", inherit_fraction=1.0), objective("ft")
    plain.load_state_dict(whole.state_dict())
    for made in (whole, plain):
        made.eval()
    lifted, bare = (made(student, made.record(teacher), targets) for made in (whole, plain))
    assert set(lifted) == {"task", "inherit"}
    assert torch.equal(lifted["inherit"], bare["transfer"])
    assert set(objective("ie-ft", inherit_fraction=0.0)(student, whole.record(teacher), targets)) == {"task", "explore"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (1, 5), (6, 2)])
def test_small_batches_two_classes_and_bf16(batch: int, classes: int, dtype: torch.dtype) -> None:
    made, (student, teacher, targets) = objective("ie-ft+kd", classes), answers(batch, classes, dtype)
    made.eval()  # batch statistics of one image of one pixel do not exist
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = made(student, made.record(teacher), targets)
    assert all(term.dtype == torch.float32 and bool(term.isfinite()) for term in found.values())


def test_sizes_are_brought_together() -> None:
    for height in (2, 7):
        settings = ObjectiveSettings()
        made = build_objective(
            "ft", teacher=TEACHER, student=(TapShape(12, height, height),), classes=5, settings=settings
        )
        student, teacher, targets = answers()
        student = Features(student.logits, (randn(4, 12, height, height).float(),))
        assert bool(made(student, made.record(teacher), targets)["transfer"].isfinite())


def test_several_taps_are_numbered() -> None:
    settings = ObjectiveSettings()
    made = build_objective("ie-ft", teacher=TEACHER * 2, student=STUDENT * 2, classes=5, settings=settings)
    student, teacher, targets = answers()
    student, teacher = Features(student.logits, student.taps * 2), Features(teacher.logits, teacher.taps * 2)
    assert set(made(student, made.record(teacher), targets)) == {"task", "inherit0", "explore0", "inherit1", "explore1"}
    assert set(made.pretraining()(teacher.taps)) == {"reconstruction0", "reconstruction1"}


@pytest.mark.parametrize("name", ["ie-fit", "kd+", "ft+ie-ft", ""])
def test_unknown_objectives_list_the_valid_ones(name: str) -> None:
    with pytest.raises(InputError, match="ie-ft"):
        objective(name)
