"""The distances of the transfers: their formulas in float64, a maintained package, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from objective_samples import numeric_gradient, randn
from torch import Tensor
from torchdistill.losses.mid_level import ATLoss, FTLoss  # type: ignore[import-untyped]

from iekd.compress.objectives.attention import AttentionMap
from iekd.compress.objectives.catalogue import OBJECTIVES
from iekd.compress.objectives.distance import (
    UNRELATED_L1,
    absolute_cosine,
    normalized_l1,
    normalized_square,
    partial_square,
    standardized_huber,
)


def unit(x: Any) -> Any:
    return x / math.sqrt((x * x).sum())


def naive_l1(a: Any, b: Any) -> float:
    return sum(abs(x - y) for x, y in zip(unit(a), unit(b), strict=True)) / math.sqrt(len(a))


def naive_square(a: Any, b: Any) -> float:
    return sum((x - y) ** 2 for x, y in zip(unit(a), unit(b), strict=True))


def naive_partial(a: Any, b: Any) -> float:
    return sum(0 if y <= x <= 0 else (x - y) ** 2 for x, y in zip(unit(a), unit(b), strict=True))


def naive_huber(a: Any, b: Any) -> float:
    a, b = ((x - x.mean()) / math.sqrt(x.var() + 1e-8) for x in (a, b))
    return float(np.mean([0.5 * d * d if d < 1 else d - 0.5 for d in np.abs(a - b)]))


def naive_cosine(a: Any, b: Any) -> float:
    return abs(float(unit(a) @ unit(b)))


Distance = Callable[[Tensor, Tensor], Tensor]
CASES: tuple[tuple[Distance, Callable[[Any, Any], float], float], ...] = (
    (normalized_l1, naive_l1, 2),
    (normalized_square, naive_square, 4),
    (partial_square, naive_partial, 4),
    (standardized_huber, naive_huber, 2),
    (absolute_cosine, naive_cosine, 1),
)
every_case = pytest.mark.parametrize(("ours", "naive", "bound"), CASES, ids=[case[0].__name__ for case in CASES])


@every_case
@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 5), (2, 8, 1, 1)])
def test_a_distance_is_its_formula_in_value_and_gradient(
    ours: Distance, naive: Callable[[Any, Any], float], bound: float, shape: tuple[int, ...]
) -> None:
    def total(moved: Any) -> float:
        return sum(naive(x, y) for x, y in zip(a.flatten(1).numpy(), moved.reshape(len(moved), -1), strict=True))

    a, b = randn(*shape), randn(*shape, seed=1).requires_grad_()
    found = ours(a, b)
    assert found.shape == shape[:1]
    assert found.sum().item() == pytest.approx(total(b.detach().numpy()), rel=1e-5)
    found.sum().backward()
    expected = numeric_gradient(total, b.detach().numpy())
    assert np.abs(b.grad.numpy() - expected).max() < 1e-4 * max(1, np.abs(expected).max())  # type: ignore[union-attr]


@every_case
def test_a_distance_ignores_scale_batch_order_and_a_shared_permutation(
    ours: Distance, naive: object, bound: float
) -> None:
    a, b = randn(6, 3, 4, 4), randn(6, 3, 4, 4, seed=1)
    here = ours(a, b)
    assert torch.allclose(ours(5 * a, 0.1 * b), here, atol=1e-5)
    order, shuffle = torch.tensor([2, 0, 3, 1, 5, 4]), torch.randperm(48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours(a[order], b[order]), here[order], atol=1e-6)
    assert torch.allclose(ours(*(x.flatten(1)[:, shuffle] for x in (a, b))), here, atol=1e-6)


@every_case
def test_a_distance_is_the_same_however_the_maps_lie_in_memory(ours: Distance, naive: object, bound: float) -> None:
    def value_and_gradient(a_last: bool, b_last: bool) -> tuple[Tensor, Tensor]:
        layouts = [torch.channels_last if last else torch.contiguous_format for last in (a_last, b_last)]
        a = randn(3, 8, 4, 4).contiguous(memory_format=layouts[0])
        b = randn(3, 8, 4, 4, seed=1).contiguous(memory_format=layouts[1]).requires_grad_()
        found = ours(a, b)
        (gradient,) = torch.autograd.grad(found.sum(), b)
        return found, gradient

    expected = value_and_gradient(False, False)
    for layout in ((True, True), (True, False), (False, True)):
        for found, wanted in zip(value_and_gradient(*layout), expected, strict=True):
            assert torch.allclose(found, wanted, atol=1e-6)


@every_case
def test_a_distance_is_bounded_whatever_it_is_given(ours: Distance, naive: object, bound: float) -> None:
    a = randn(8, 64)
    for b in (a, -a, 1e6 * randn(8, 64, seed=1), 1e-30 * a, torch.zeros_like(a), a.abs(), -a.abs()):
        found = ours(a, b)
        assert bool(((found >= 0) & (found <= bound * (1 + 1e-6))).all())


def test_the_bounds_are_reached() -> None:
    ones = torch.ones(1, 64)
    assert normalized_l1(ones, -ones).item() == pytest.approx(2)
    assert normalized_square(ones, -ones).item() == pytest.approx(4)
    assert partial_square(ones, -ones).item() == pytest.approx(4)
    assert partial_square(-0.1 * ones, -ones).item() == 0
    signs = torch.tensor([[1.0, -1.0] * 32])
    assert standardized_huber(signs, -signs).item() == pytest.approx(1.5, rel=1e-4)
    assert absolute_cosine(ones, -ones).item() == pytest.approx(1)


@pytest.mark.parametrize("ours", [normalized_l1, normalized_square, partial_square, standardized_huber])
def test_a_distance_means_the_same_at_any_size(ours: Distance) -> None:
    wide, narrow = ((randn(64, n, seed=seed) for seed in (2, 3)) for n in (4096, 256))
    assert ours(*wide).mean().item() == pytest.approx(ours(*narrow).mean().item(), rel=0.03)


def test_unrelated_codes_lie_where_the_constant_says() -> None:
    assert normalized_l1(randn(64, 4096), randn(64, 4096, seed=1)).mean().item() == pytest.approx(
        UNRELATED_L1, rel=0.01
    )


def test_the_papers_weight_is_ours() -> None:
    """50 times the published mean at n = 2,048 is our default weight times our distance; 500 for plain FT."""
    a, b = randn(4, 2048), randn(4, 2048, seed=1)
    published = np.mean([naive_l1(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]) / math.sqrt(2048)
    ours = normalized_l1(a, b).mean().item()
    assert OBJECTIVES["ie-ft"].defaults["explore_weight"] * ours == pytest.approx(50 * published, rel=1e-3)
    assert OBJECTIVES["ft"].defaults["transfer_weight"] * ours == pytest.approx(500 * published, rel=1e-3)


def test_ft_agrees_with_torchdistill() -> None:
    """Its mean over all elements is ours over sqrt(n)."""
    a, b = randn(5, 3, 4, 4), randn(5, 3, 4, 4, seed=1).requires_grad_()
    theirs = FTLoss()({"translator": {"output": b}}, {"paraphraser": {"output": a}})
    ours = normalized_l1(a, b).mean() / math.sqrt(48)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradient(ours, theirs, b)


def test_at_agrees_with_torchdistill() -> None:
    """Its mean over the positions is ours over their number."""
    teacher, student = randn(5, 6, 4, 4), randn(5, 3, 4, 4, seed=1).requires_grad_()
    pair = {"teacher": {"path": "t", "io": "output"}, "student": {"path": "s", "io": "output"}}
    theirs = ATLoss({"pair": pair})({"s": {"output": student}}, {"t": {"output": teacher}})
    attend = AttentionMap()
    ours = normalized_square(attend(teacher), attend(student)).mean() / 16
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradient(ours, theirs, student)


def assert_same_gradient(ours: Tensor, theirs: Tensor, at: Tensor) -> None:
    (mine,), (other,) = (torch.autograd.grad(value, at, retain_graph=True) for value in (ours, theirs))
    assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7 * float(other.abs().max()) + 1e-9)
