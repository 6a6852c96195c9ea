"""Two networks that train together."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from objective_samples import randn
from objective_table import MUTUAL
from torch import Tensor

from iekd.compress.objectives import ObjectiveSettings, build_mutual
from iekd.compress.objectives.mutual import DeepMutual, Switchable, teacher_waits
from iekd.errors import InputError
from iekd.models.registry import Architecture, build
from iekd.models.taps import Tapped


def pair(first: str = "cifar_resnet20", second: str = "cifar_wrn_16_1") -> tuple[Tapped, Tapped]:
    torch.manual_seed(0)
    a, b = (Tapped(build(Architecture("timm", name), 5, 32)) for name in (first, second))
    return a, b


def task(name: str, **changes: object) -> DeepMutual:
    return build_mutual(name, pair(), image_size=32, settings=ObjectiveSettings(**changes))  # type: ignore[arg-type]


def batch(images: int = 8) -> tuple[Tensor, Tensor]:
    return randn(images, 3, 32, 32).float(), torch.arange(images) % 5


@pytest.mark.parametrize(("name", "terms"), MUTUAL, ids=[name for name, _ in MUTUAL])
def test_two_networks_lower_the_loss_and_both_learn(name: str, terms: set[str]) -> None:
    made, (images, targets) = task(name).train(), batch()
    before = {key: value.clone() for key, value in made.named_parameters()}
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-3)
    losses, seen = [], set()
    for _ in range(10):
        found = made(images, targets)
        assert set(found) <= terms
        seen |= set(found)
        loss = torch.stack(list(found.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(sum(term.item() for key, term in found.items() if key == "b.task"))
    assert seen == terms
    assert losses[-1] < losses[0] - 0.1
    still = [key for key, value in made.named_parameters() if torch.equal(value, before[key])]
    assert still == []


def test_deep_mutual_learning_is_its_formula() -> None:
    """Zhang et al. 2018, eq. 5: cross-entropy plus KL of the other's prediction from one's own."""
    made, (images, targets) = task("dml").eval(), batch()
    with torch.no_grad():
        found = made(images, targets)
        a, b = made.a(images).logits.double(), made.b(images).logits.double()
    p, q = a.softmax(1), b.softmax(1)
    assert found["a.task"].item() == pytest.approx(F.cross_entropy(a, targets).item(), rel=1e-5)
    assert found["a.follow"].item() == pytest.approx((q * (q / p).log()).sum(1).mean().item(), rel=1e-4)
    assert found["b.follow"].item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)


def test_no_network_is_moved_by_the_other_s_terms() -> None:
    made, (images, targets) = task("ie-dml").train(), batch()
    found = made(images, targets)
    torch.stack([term for key, term in found.items() if key.startswith("a.") and "recon" not in key]).sum().backward()
    assert all(value.grad is None for value in made.b.parameters())
    assert all(value.grad is not None for value in made.a.parameters())


def test_exploration_of_both_is_bounded() -> None:
    made, (images, targets) = task("ie-dml").train(), batch()
    for network in "ab":
        assert 0 >= made(images, targets)[f"{network}.explore"].item() >= -2 * 1.105 * (1 + 1e-6)


def _waits(teacher: list[float], student: list[float]) -> bool:
    """For predictions rather than logits; the first class is right."""
    return teacher_waits(torch.tensor([teacher]).log(), torch.tensor([student]).log(), torch.tensor([0]), 1.0)


def test_the_teacher_waits_only_when_far_ahead() -> None:
    assert _waits([0.9, 0.09, 0.01], [0.1, 0.01, 0.89]), "right, against a student that is wrong in its own way"
    assert not _waits([0.9, 0.05, 0.05], [0.3, 0.35, 0.35]), "a student on the way from chance to the teacher"
    assert not _waits([0.1, 0.01, 0.89], [0.9, 0.09, 0.01]), "behind its student"


def test_the_switch_is_the_published_threshold() -> None:
    teacher, student, targets = 2 * randn(16, 5), randn(16, 5, seed=1), torch.arange(16) % 5
    p_t, p_s, y = teacher.softmax(1), student.softmax(1), F.one_hot(targets, 5).double()
    gap, e_s, e_t = (float((x - z).abs().sum(1).mean()) for x, z in ((p_s, p_t), (p_s, y), (p_t, y)))
    delta = e_s - math.exp(-e_t / (e_s + e_t)) * e_t
    assert teacher_waits(teacher, student, targets, 1.0) == (gap > delta and e_t < e_s)


def test_a_teacher_that_waits_has_no_terms() -> None:
    made, (images, targets) = task("switokd"), batch()
    assert isinstance(made, Switchable)
    predictions = ([0.9, 0.07, 0.01, 0.01, 0.01], [0.1, 0.01, 0.87, 0.01, 0.01])
    with torch.no_grad():
        for network, prediction in zip((made.a, made.b), predictions, strict=True):
            network.network.classifier.weight.zero_()  # type: ignore[union-attr, operator]
            network.network.classifier.bias.copy_(torch.tensor(prediction).log())  # type: ignore[union-attr, operator]
    assert set(made.eval()(images, torch.zeros_like(targets))) == {"b.task", "b.follow"}


def test_what_mutual_learning_cannot_be_is_refused() -> None:
    a, _ = pair()
    settings = ObjectiveSettings()
    for networks in ((a,), (a, a)):
        with pytest.raises(InputError, match="trains two networks together, not 1"):
            build_mutual("dml", networks, image_size=32, settings=settings)
    with pytest.raises(InputError, match="unknown mode of mutual learning"):
        build_mutual("dmll", pair(), image_size=32, settings=settings)
    with pytest.raises(InputError, match="needs a finished teacher"):
        build_mutual("ie-dml", pair(), image_size=32, settings=ObjectiveSettings(split="relevance"))
    with pytest.raises(InputError, match="at"):
        build_mutual("ie-dml", pair(), image_size=32, settings=settings, transfer="od")
