"""The terms on logits against their formulas in float64, against a maintained package, and what must hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from objective_samples import answers, numeric_gradient, objective, randn
from torch import Tensor
from torchdistill.losses.mid_level import DISTLoss, KDLoss, LogitStdKDLoss  # type: ignore[import-untyped]

from iekd.compress.objectives.build import load
from iekd.compress.objectives.catalogue import OBJECTIVES, Entry
from iekd.compress.objectives.logits import (
    asymmetric,
    correlation,
    decoupled,
    distillation_loss,
    softened_kl,
    standardised,
)
from iekd.errors import InputError
from iekd.models.taps import Features

Term = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p: Any, q: Any) -> float:
    return float((p * np.log(p / q)).sum())


def naive_kd(s: Any, t: Any, y: int, temperature: float) -> float:
    return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))


def naive_dkd(s: Any, t: Any, y: int, temperature: float) -> float:
    p, q = softmax(t / temperature), softmax(s / temperature)
    target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    p_rest, q_rest = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
    return temperature**2 * (1.0 * target + 2.0 * kl(p_rest, q_rest))


def naive_lskd(s: Any, t: Any, y: int, temperature: float) -> float:
    s, t = ((z - z.mean()) / (z.std(ddof=1) + 1e-7) for z in (s, t))
    return naive_kd(s, t, y, temperature)


def naive_ats(s: Any, t: Any, y: int, temperature: float) -> float:
    temperatures = np.full(len(t), 0.75 * temperature)
    temperatures[y] = temperature
    return kl(softmax(t / temperatures), softmax(s))


def mean_over_images(one: Callable[[Any, Any, int, float], float]) -> Callable[[Any, Any, Any, float], float]:
    def many(s: Any, t: Any, y: Any, temperature: float) -> float:
        return float(np.mean([one(*sample, temperature) for sample in zip(s, t, y, strict=True)]))

    return many


def naive_dist(s: Any, t: Any, y: Any, temperature: float) -> float:
    p, q = (np.stack([softmax(z / temperature) for z in logits]) for logits in (s, t))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return float(temperature**2 * (2 * inter + 2 * intra))


CASES: tuple[tuple[Term, Callable[[Any, Any, Any, float], float]], ...] = (
    (softened_kl, mean_over_images(naive_kd)),
    (decoupled, mean_over_images(naive_dkd)),
    (correlation, naive_dist),
    (standardised, mean_over_images(naive_lskd)),
    (asymmetric, mean_over_images(naive_ats)),
)
every_case = pytest.mark.parametrize(("ours", "naive"), CASES, ids=[case[0].__name__ for case in CASES])


@every_case
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_term_is_its_formula_in_value_and_gradient(
    ours: Term, naive: Callable[[Any, Any, Any, float], float], temperature: float
) -> None:
    student, teacher, targets = randn(4, 7).requires_grad_(), 3 * randn(4, 7, seed=1), torch.tensor([0, 3, 6, 3])
    s, t, y = student.detach().numpy(), teacher.numpy(), targets.numpy()
    loss = ours(student, teacher, targets, temperature)
    assert loss.item() == pytest.approx(naive(s, t, y, temperature), rel=1e-4)
    loss.backward()
    expected = numeric_gradient(lambda moved: naive(moved, t, y, temperature), s)
    assert np.abs(student.grad.numpy() - expected).max() < 2e-4  # type: ignore[union-attr]


@every_case
def test_a_term_is_zero_for_equals_and_ignores_shift_order_and_permutation(ours: Term, naive: object) -> None:
    student, teacher, targets = randn(5, 6), randn(5, 6, seed=1), torch.tensor([0, 1, 2, 5, 2])
    here = ours(student, teacher, targets, 2.0).item()
    shift = 0 if ours is asymmetric else 3  # two temperatures make the teacher's level count
    assert ours(student + 7, teacher - shift, targets, 2.0).item() == pytest.approx(here, rel=1e-4)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert ours(student[order], teacher[order], targets[order], 2.0).item() == pytest.approx(here, rel=1e-5)
    classes = torch.tensor([2, 0, 5, 1, 4, 3])
    renamed = classes.argsort()[targets]
    assert ours(student[:, classes], teacher[:, classes], renamed, 2.0).item() == pytest.approx(here, rel=1e-5)
    if ours is not asymmetric:  # whose teacher is scaled on purpose
        assert ours(teacher, teacher, targets, 2.0).item() == pytest.approx(0, abs=1e-5)


def test_standardised_logits_have_no_scale() -> None:
    student, teacher, targets = randn(5, 6), randn(5, 6, seed=1), torch.zeros(5, dtype=torch.long)
    here = standardised(student, teacher, targets, 2.0).item()
    assert standardised(9 * student, 0.1 * teacher, targets, 2.0).item() == pytest.approx(here, rel=1e-4)


def test_kd_is_the_sum_of_its_decoupled_parts() -> None:
    """Zhao et al. 2022, eq. 5: KD = TCKD + (1 - p_target) NCKD, for one image."""
    student, teacher, targets = randn(1, 6), randn(1, 6, seed=1), torch.tensor([2])
    rest = 1 - teacher.softmax(1)[0, 2].item()
    parts = decoupled(student, teacher, targets, 1.0, alpha=1.0, beta=rest)
    assert parts.item() == pytest.approx(distillation_loss(student, teacher, 1.0).item(), rel=1e-5)


def test_asymmetric_temperatures_that_are_equal_are_kd() -> None:
    student, teacher, targets = randn(3, 6), randn(3, 6, seed=1), torch.tensor([2, 0, 1])
    same = asymmetric(student, teacher, targets, 1.0, wrong=1.0)
    assert same.item() == pytest.approx(distillation_loss(student, teacher, 1.0).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "factor"),
    [
        (softened_kl, KDLoss("m", "output", "m", "output", temperature=3.0, alpha=0.0), 9.0),
        (correlation, DISTLoss("m", "output", "m", "output", beta=2.0, gamma=2.0, tau=3.0), 1.0),
        (standardised, LogitStdKDLoss("m", "output", "m", "output", temperature=3.0, alpha=0.0), 9.0),
    ],
    ids=["kd", "dist", "lskd"],
)
def test_terms_agree_with_torchdistill(ours: Term, theirs: Any, factor: float) -> None:
    """Its KL terms without labels leave out the squared temperature."""
    student, teacher = randn(5, 6).requires_grad_(), randn(5, 6, seed=1)
    mine = ours(student, teacher, torch.zeros(5, dtype=torch.long), 3.0)
    other = factor * theirs({"m": {"output": student}}, {"m": {"output": teacher}})
    assert mine.item() == pytest.approx(other.item(), rel=1e-4)
    a, b = (torch.autograd.grad(value, student)[0] for value in (mine, other))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["dkd", "lskd"])
def test_terms_that_two_classes_make_void_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="needs 3 classes or more, the data has 2"):
        objective(name, classes=2)


def test_dist_of_two_classes_learns_from_the_images_of_a_class_alone() -> None:
    """Two probabilities correlate at 1 or -1, whose gradient is 0; over the images there is something to learn."""
    student, teacher, targets = randn(6, 2).requires_grad_(), randn(6, 2, seed=1), torch.zeros(6, dtype=torch.long)
    inter = correlation(student, teacher, targets, 1.0, gamma=0.0)
    agree = ((student[:, 0] > student[:, 1]) == (teacher[:, 0] > teacher[:, 1])).double().mean().item()
    assert inter.item() == pytest.approx(2 * 2 * (1 - agree), abs=1e-5)
    assert torch.autograd.grad(inter, student)[0].abs().max() < 1e-5
    made, optimizer = objective("dist", classes=2, task_weight=0.0), torch.optim.Adam([student], lr=0.1)
    intra = []
    for _ in range(60):
        intra.append(correlation(student, teacher, targets, 1.0, beta=0.0).item())
        optimizer.zero_grad()
        made(Features(student, ()), made.record(Features(teacher, ())), targets)["dist"].backward()
        optimizer.step()
    assert intra[-1] < 0.1 * intra[0]


@pytest.mark.parametrize("scale", [0.0, 1e-4])
@pytest.mark.parametrize(
    ("term", "classes"), [(correlation, 2), (correlation, 3), (correlation, 10), (standardised, 3), (standardised, 10)]
)
def test_a_student_that_says_the_same_of_every_class_has_a_gradient_to_learn_by(
    term: Term, classes: int, scale: float
) -> None:
    student = (scale * randn(16, classes, seed=2).float()).requires_grad_()
    teacher = randn(16, classes).float()
    term(student, teacher, torch.zeros(16, dtype=torch.long), 1.0).backward()
    assert student.grad is not None
    assert 0 < student.grad.abs().max() < 1e3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_its_formula_for_logits_that_differ_by_a_twentieth(temperature: float) -> None:
    """The floor under its denominator is below what a network says before it has learned anything."""
    student, teacher, targets = 0.05 * randn(8, 10), randn(8, 10, seed=1), torch.zeros(8, dtype=torch.long)
    found = correlation(student, teacher, targets, temperature).item()
    assert found == pytest.approx(naive_dist(student.numpy(), teacher.numpy(), None, temperature), rel=1e-4)


def test_lskd_is_its_formula_for_logits_that_differ_by_a_hundredth() -> None:
    """The floor under its denominator is below what a network says before it has learned anything."""
    student, teacher = 0.01 * randn(8, 10), randn(8, 10, seed=1)
    found = standardised(student, teacher, torch.zeros(8, dtype=torch.long), 2.0).item()
    one = [naive_lskd(s, t, 0, 2.0) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert found == pytest.approx(np.mean(one), rel=1e-4)


@pytest.mark.parametrize(
    "entry", [entry for entry in OBJECTIVES.values() if entry.kind == "logits"], ids=lambda e: e.name
)
def test_the_catalogue_lists_what_a_term_has_of_its_own(entry: Entry) -> None:
    parameters = inspect.signature(load(entry)).parameters.values()
    own = {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert own == entry.options


def test_an_option_reaches_its_term_and_no_other() -> None:
    student, teacher, targets = answers()
    plain, changed = (
        made(student, made.record(teacher), targets)
        for made in (objective("dkd+ats"), objective("dkd+ats", logit_options="beta=8, alpha=0.5"))
    )
    parts = decoupled(student.logits, teacher.logits, targets, 4.0, alpha=0.5, beta=8.0)
    assert changed["dkd"].item() == pytest.approx(parts.item())
    assert changed["dkd"].item() != pytest.approx(plain["dkd"].item())
    assert changed["ats"].item() == plain["ats"].item()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("dkd", "betta=8", "unknown option of a logit term 'betta'.*Did you mean beta"),
        ("kd", "beta=8", "'beta=8': no term of this objective has options of its own"),
        ("ie-ft", "beta=8", "no term of this objective has options"),
        ("dkd", "beta", "--logit-options 'beta' is not a list of values"),
        ("dkd", "beta=much", "is not a list of values.*name=number"),
    ],
)
def test_an_option_that_no_term_has_is_told(name: str, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        objective(name, logit_options=text)


def test_teachers_of_other_classes_are_refused() -> None:
    made, (student, _, targets) = objective("kd"), answers()
    with pytest.raises(InputError, match=r"the teacher has 7 classes, the student 5.*Fine-tune the teacher"):
        made(student, made.record(Features(randn(8, 7), ())), targets)
