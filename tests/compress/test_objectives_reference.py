"""Whole objectives against their formulas, written out in numpy and float64: values, and gradients by differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from objective_samples import Says, features, numeric_gradient, objective, randn
from torch import Tensor

from iekd.compress.objectives import EnsembleTeacher, ObjectiveSettings, build_mutual, build_objective
from iekd.compress.objectives.build import taps_for
from iekd.compress.objectives.factor import FactorTransfer
from iekd.compress.objectives.orthogonal import OrthogonalProjection
from iekd.compress.objectives.overhaul import OverhaulTransfer
from iekd.models.registry import Architecture, build
from iekd.models.taps import Features, Tapped, TapShape

TEACHER, STUDENT = (TapShape(6, 8, 8),), (TapShape(8, 4, 4),)
BATCH, CLASSES = 3, 5
TARGETS = torch.tensor([0, 3, 4])


def unit(x: Any) -> Any:
    return x / math.sqrt((x * x).sum())


def halved(maps: Any) -> Any:
    """Maps (B, C, 2h, 2w) averaged down to half their size."""
    b, c, h, w = maps.shape
    return maps.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def answers() -> tuple[Features, Features]:
    """Student and teacher in float64; the teacher's maps are twice as large."""
    student, teacher = (
        features(taps, BATCH, CLASSES, seed, torch.float64) for taps, seed in ((STUDENT, 0), (TEACHER, 20))
    )
    return student, Features(teacher.logits.detach(), tuple(tap.detach() for tap in teacher.taps))


def assert_is(found: Tensor, naive: Callable[[Any], float], at: Tensor) -> None:
    """``found`` has the value of ``naive`` at the maps ``at``, and its gradient there."""
    maps = at.detach().numpy()
    assert found.item() == pytest.approx(naive(maps), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, at, retain_graph=True)
    expected = numeric_gradient(naive, maps)
    assert np.abs(expected).max() > 1e-3, "a gradient of nothing would agree with anything"
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def square(a: Any, b: Any) -> float:
    return float(((unit(a) - unit(b)) ** 2).sum())


@pytest.mark.parametrize("split", ["natural", "random"])
@pytest.mark.parametrize(
    ("changes", "explores"),
    [
        ({}, lambda a, b: -square(a, b)),
        ({"explore_margin": 0.2}, lambda a, b: -min(square(a, b), 0.2)),
        ({"explore_form": "cosine"}, lambda a, b: abs(float((unit(a) * unit(b)).sum()))),
    ],
    ids=["distance", "margin", "cosine"],
)
def test_inherit_and_explore_is_its_formula(
    split: str, changes: dict[str, Any], explores: Callable[[Any, Any], float]
) -> None:
    """Huang et al. 2021, eq. 4 to 6, over attention maps: L = task + 2 D(t, inherit) - 0.7 D(t, explore)."""
    student, teacher = answers()
    order = (
        [*range(8)] if split == "natural" else torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    )
    inherit, explore = order[:2], order[2:]
    made = objective(
        "ie-at",
        teacher=TEACHER,
        student=STUDENT,
        inherit_fraction=0.25,
        split=split,
        seed=3,
        inherit_weight=2.0,
        explore_weight=0.7,
        task_weight=1.5,
        **changes,
    )
    found = made(student, made.record(teacher), TARGETS)
    codes = (halved(teacher.taps[0].numpy()) ** 2).mean(1)
    logits = student.logits.detach().numpy()
    tasks = [np.log(np.exp(z).sum()) - z[y] for z, y in zip(logits, TARGETS.tolist(), strict=True)]

    def naive(maps: Any) -> float:
        pulled, pushed = ((maps[:, part] ** 2).mean(1) for part in (inherit, explore))
        total = 0.0
        for code, near, far, task in zip(codes, pulled, pushed, tasks, strict=True):
            total += 1.5 * task + 2.0 * square(code, near) + 0.7 * explores(code, far)
        return total / BATCH

    assert set(found) == {"task", "inherit", "explore"}
    assert_is(torch.stack(list(found.values())).sum(), naive, student.taps[0])


def test_each_network_of_ie_dml_inherits_from_and_explores_away_from_the_other() -> None:
    """Huang et al. 2021, section 3.4, over attention maps; a has larger and fewer, so the sides cannot swap."""
    b, a = answers()
    a = Features(a.logits, tuple(tap.requires_grad_() for tap in a.taps))
    settings = ObjectiveSettings(inherit_fraction=0.5, inherit_weight=2.0, explore_weight=0.7)
    networks: Any = (Says(a), Says(b))
    made = build_mutual("ie-dml", networks, image_size=8, settings=settings, transfer="at")
    found = made(torch.zeros(BATCH, 3, 8, 8), TARGETS)
    sizes = {"a": halved, "b": lambda maps: maps}  # a's maps are twice as large as b's
    for name, own, other, resize in (("a", a, b, sizes["b"]), ("b", b, a, sizes["a"])):
        codes = (resize(other.taps[0].detach().numpy()) ** 2).mean(1)

        def terms(maps: Any, codes: Any = codes, resize: Any = sizes[name]) -> tuple[float, float]:
            parts = np.split(resize(maps), 2, axis=1)
            near, far = (np.mean([square(*pair) for pair in zip(codes, (x**2).mean(1), strict=True)]) for x in parts)
            return 2.0 * float(near), -0.7 * float(far)

        for number, term in enumerate(("inherit", "explore")):
            assert_is(found[f"{name}.{term}"], lambda maps, n=number: terms(maps)[n], own.taps[0])  # type: ignore[misc]


def test_what_ie_dml_learns_beside_the_networks_is_the_others_maps_relative_to_their_size() -> None:
    """Kim et al. 2018, eq. 1 (L1), divided by the maps' mean size: one auto-encoder a network, of the other's maps."""
    b, a = (Features(own.logits.float(), tuple(tap.float() for tap in own.taps)) for own in answers())
    settings = ObjectiveSettings(factor_channels=3, hidden_channels=4)
    made = build_mutual("ie-dml", (Says(a), Says(b)), image_size=8, settings=settings, transfer="ft").eval()
    found = made(torch.zeros(BATCH, 3, 8, 8), TARGETS)
    maps = {"a": b.taps[0], "b": halved(a.taps[0].detach().numpy())}  # each side at the smaller size of both
    for number, name in enumerate("ab"):
        (part,) = made.learners[number].parts
        given = torch.as_tensor(maps[name]).detach().float()
        back = part.decoder(part.encoder(given)).detach().double().numpy()
        exact = given.double().numpy()
        naive = np.abs(back - exact).mean() / np.abs(exact).mean()
        term = found[f"{name}.reconstruction"]
        assert term.item() == pytest.approx(naive, rel=1e-5)
        bias = part.decoder[-1].bias
        (gradient,) = torch.autograd.grad(term, bias, retain_graph=True)
        signs = np.sign(back - exact).sum((0, 2, 3)) / exact.size / np.abs(exact).mean()
        np.testing.assert_allclose(gradient.numpy(), signs, atol=1e-6)


def test_od_is_its_formula() -> None:
    """Heo et al. 2019: margins are mean negative values, the code max(x, m), the distance partial."""
    student, teacher = answers()
    made = objective("od", teacher=TEACHER, student=STUDENT, transfer_weight=3.0).eval()
    made.lifts[0].heads.double()
    made.prepare(student, teacher)
    maps = halved(teacher.taps[0].numpy())
    margins = [np.mean([x for x in maps[:, channel].flatten() if x < 0]) for channel in range(6)]
    lift = made.lifts[0]
    assert lift.transfer.margin.flatten().tolist() == pytest.approx(margins, rel=1e-5)
    clipped = np.stack([np.maximum(maps[:, channel], margin) for channel, margin in enumerate(margins)], 1)
    record = made.record(teacher)
    rms = np.sqrt((clipped**2).mean((1, 2, 3)))
    np.testing.assert_allclose(record.codes[0].numpy(), clipped / rms[:, None, None, None], rtol=1e-5)
    weight = lift.heads["inherit"][0].weight.detach().double().numpy()[:, :, 0, 0]

    def naive(own: Any) -> float:
        distances = []
        for code, answer in zip(clipped, np.einsum("oc,bchw->bohw", weight, own), strict=True):
            t, s = unit(code), unit(answer)  # batch statistics that were never updated only scale, which is lost here
            distances.append(np.where((s <= t) & (t <= 0), 0, (t - s) ** 2).sum())
        return 3.0 * float(np.mean(distances))

    assert_is(made(student, record, TARGETS)["transfer"], naive, student.taps[0])


def test_od_without_negative_values_has_margins_of_zero() -> None:
    made = OverhaulTransfer(TapShape(2, 4, 4), ObjectiveSettings())
    tap = randn(3, 2, 4, 4)
    tap[:, 1].abs_()
    made.prepare(tap)
    assert made.margin[0].item() < 0
    assert made.margin[1].item() == 0


@pytest.mark.parametrize("name", ["od", "ie-od+kd"])
def test_od_reads_the_maps_before_a_stages_relu_where_their_margins_are(name: str) -> None:
    assert taps_for(name, (-1, "layer3", "before:0")) == ("before:-1", "before:layer3", "before:0")
    networks = [build(Architecture("timm", net), 5, 32).eval() for net in ("cifar_resnet20", "cifar_resnet8x4")]
    student, teacher = (Tapped(network, taps_for(name, (-1,)), 32) for network in networks)
    made, images = objective(name, teacher=teacher.shapes(32), student=student.shapes(32)), randn(16, 3, 32, 32).float()
    with torch.no_grad():
        made.prepare(student(images), teacher(images))
    assert float((made.lifts[0].transfer.margin < 0).float().mean()) > 0.9
    assert made.remarks() == ()


def test_od_without_any_margin_says_so() -> None:
    student, teacher = answers()
    made = objective("od", teacher=TEACHER, student=STUDENT)
    made.prepare(student, Features(teacher.logits, (teacher.taps[0].abs(),)))
    (remark,) = made.remarks()
    assert "all margins are 0" in remark


@pytest.mark.parametrize("name", ["ft", "ie-at+kd", "vkd"])
def test_other_transfers_read_the_stages_own_maps(name: str) -> None:
    assert taps_for(name, (-1, "before:layer3")) == (-1, "before:layer3")


def test_terms_on_logits_tap_nothing() -> None:
    assert taps_for("kd", (-1,)) == ()


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (6, 4), (5, 5)])
def test_vkd_projects_by_an_orthonormal_matrix_that_stays_one(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    made = OrthogonalProjection(inputs, outputs)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5, weight_decay=0.1)
    for _ in range(5):
        matrix = made.matrix().detach().double().numpy()
        tall, few = (matrix, inputs) if outputs >= inputs else (matrix.T, outputs)
        np.testing.assert_allclose(tall.T @ tall, np.eye(few), atol=1e-5)
        w = made.weight.detach().double().numpy()
        np.testing.assert_allclose(tall @ tall.T, w @ np.linalg.inv(w.T @ w) @ w.T, atol=1e-4)
        optimizer.zero_grad()
        made(randn(2, inputs, 3, 3).float()).pow(3).sum().backward()
        optimizer.step()


def test_vkd_is_its_formula() -> None:
    """Miles et al. 2024: smooth L1 between the standardised pooled features and the projected ones."""
    student, teacher = answers()
    made = objective("vkd", teacher=TEACHER, student=STUDENT, transfer_weight=3.0)
    matrix = made.lifts[0].heads["inherit"].matrix().detach().double().numpy()
    pooled = teacher.taps[0].numpy().mean((2, 3))

    def standard(x: Any) -> Any:
        return (x - x.mean()) / x.std()

    def naive(own: Any) -> float:
        distances = []
        for t, s in zip(pooled, own.mean((2, 3)) @ matrix.T, strict=True):
            gap = np.abs(standard(t) - standard(s))
            distances.append(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
        return 3.0 * float(np.mean(distances))

    assert_is(made(student, made.record(teacher), TARGETS)["transfer"], naive, student.taps[0])


def test_ft_reconstructs_by_the_relative_l1_error() -> None:
    torch.manual_seed(0)
    learner = FactorTransfer(TapShape(6, 4, 4), ObjectiveSettings()).learner().eval()
    tap = 5 * randn(3, 6, 4, 4)
    loss = learner(tap)
    off = learner.decoder(learner.encoder(tap.float())).detach().double().numpy() - tap.numpy()
    assert loss.item() == pytest.approx(np.abs(off).sum() / np.abs(tap.numpy()).sum(), rel=1e-5)
    last = learner.decoder[-1].bias
    (gradient,) = torch.autograd.grad(loss, last)
    np.testing.assert_allclose(gradient.numpy(), np.sign(off).sum((0, 2, 3)) / np.abs(tap.numpy()).sum(), rtol=1e-4)


@pytest.mark.parametrize("name", ["at", "ft"])
def test_an_ensembles_record_is_the_mean_of_its_members_unit_codes(name: str) -> None:
    members = (TapShape(6, 8, 8), TapShape(10, 4, 4))
    torch.manual_seed(0)
    made = build_objective(
        name,
        teacher=(TapShape(16, 4, 4),),
        student=STUDENT,
        classes=CLASSES,
        settings=ObjectiveSettings(),
        ensemble=[(member,) for member in members],
    ).eval()
    maps = [10.0**power * randn(BATCH, *member, seed=power) for power, member in enumerate(members)]
    small = [halved(maps[0].numpy()), maps[1].numpy()]
    logits = [randn(BATCH, CLASSES, seed=seed) for seed in (5, 6)]
    teachers = [Says(Features(own, (tap.float(),))) for own, tap in zip(logits, maps, strict=True)]
    record = made.record(EnsembleTeacher(teachers)(torch.zeros(BATCH, 3, 8, 8)))
    units = []
    for own, member in zip(small, made.lifts[0].transfer.members, strict=True):
        factors = member.encoder(torch.from_numpy(own).float()).detach().numpy() if name == "ft" else None
        codes = (own**2).mean(1) if factors is None else factors
        units.append(np.stack([unit(code) for code in codes]))
    np.testing.assert_allclose(record.codes[0].numpy(), (units[0] + units[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(record.logits.numpy(), (logits[0].numpy() + logits[1].numpy()) / 2, rtol=1e-6)
