"""CKA as a way to explore: its value against the written-out definition, its gradient, and what it does to channels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from objective_samples import answers, numeric_gradient, objective, randn

from iekd.compress.objectives.alignment import alignment


def naive_hsic(a: Any, b: Any) -> float:
    """Song et al. 2012, theorem 2: the mean over distinct images, from linear kernels."""
    k, m, n = a @ a.T, b @ b.T, len(a)
    quadruples = list(itertools.permutations(range(n), 4))
    return float(np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quadruples]))


def naive_cka(a: Any, b: Any) -> float:
    return naive_hsic(a, b) / math.sqrt(naive_hsic(a, a) * naive_hsic(b, b))


def pair(images: int = 8) -> tuple[Any, Any]:
    a = randn(images, 4).numpy()
    return a, a[:, :3] + 0.3 * randn(images, 3, seed=1).numpy()


def test_value_and_gradient_are_those_of_the_definition() -> None:
    a, b = pair()
    moving = torch.tensor(b, requires_grad=True)
    found = alignment(torch.tensor(a), moving)
    assert found.item() == pytest.approx(naive_cka(a, b), rel=1e-9)
    torch.autograd.backward(found)
    assert moving.grad is not None
    np.testing.assert_allclose(
        moving.grad.numpy(), numeric_gradient(lambda x: naive_cka(a, x), b), rtol=1e-4, atol=1e-7
    )


def test_it_ignores_scale_shift_rotation_and_order() -> None:
    a, b = (torch.tensor(x) for x in pair(16))
    rotation = torch.linalg.qr(randn(3, 3, seed=5))[0]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    same = alignment(a, b).item()
    assert alignment(7 * a + 1, (b @ rotation) * 0.1 - 3).item() == pytest.approx(same, rel=1e-9)
    assert alignment(a[order], b[order]).item() == pytest.approx(same, rel=1e-9)
    assert alignment(a, 2 * a).item() == pytest.approx(1)


@pytest.mark.parametrize("images", [1, 3, 5])
def test_what_says_nothing_counts_as_nothing(images: int) -> None:
    constant = torch.ones(images, 3, requires_grad=True)
    found = alignment(randn(images, 4), constant)
    torch.autograd.backward(found)
    assert found.item() == 0
    assert constant.grad is not None
    assert bool(constant.grad.isfinite().all())


def test_where_only_one_image_differs_nothing_is_pulled() -> None:
    """Such a kernel has an HSIC of 0 with itself, and rounding in its place, above 0 or below, would be divided by."""
    steepest = 0.0
    for seed in range(20):
        alike = randn(1, 32, seed=seed).repeat(32, 1)
        alike[3] += randn(32, seed=seed + 100)
        moving = alike.float().requires_grad_()
        found = alignment(randn(32, 64, seed=seed).float(), moving)
        (gradient,) = torch.autograd.grad(found, moving)
        steepest = max(steepest, gradient.abs().max().item())
    assert steepest < 10


def test_exploring_by_cka_takes_the_bare_channels_away_from_the_teacher() -> None:
    made, (student, teacher, targets) = objective("ie-ft", explore_form="cka"), answers(16)
    made.prepare(student, teacher)
    with torch.no_grad():
        student.taps[0].copy_(teacher.taps[0][:, :12])  # every channel says what the teacher says
    record, explores = made.record(teacher), made.lifts[0].explore_index
    before = alignment(record.codes[0], student.taps[0][:, explores]).item()
    assert not [name for name, _ in made.named_parameters() if "heads.explore" in name]
    optimizer = torch.optim.Adam(student.taps, lr=5e-2)
    for _ in range(80):
        optimizer.zero_grad()
        torch.autograd.backward(made(student, record, targets)["explore"])
        optimizer.step()
    assert alignment(record.codes[0], student.taps[0][:, explores]).item() < before - 0.1
