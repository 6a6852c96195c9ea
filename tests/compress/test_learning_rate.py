"""The peak of the learning rate where nobody gives it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from small import settings
from torch import nn

from iekd.compress.config_input import make_config
from iekd.compress.data import load_data
from iekd.compress.learning_rate import DELICATE, LONG, PRETRAINED, SCRATCH, SHORT, peak_rate
from iekd.compress.observer import Observer
from iekd.compress.plan import Plan, make_plan


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_the_fewer_the_steps_the_higher_the_rate_within_its_bounds() -> None:
    rates = [peak_rate(convolutional, "scratch", steps) for steps in (0, 88, LONG // 16, LONG // 4, LONG, 100 * LONG)]

    assert rates == pytest.approx([SHORT, SHORT, SHORT, 2 * SCRATCH, SCRATCH, SCRATCH], rel=0.01)


@pytest.mark.parametrize("steps", [88, 10 * LONG])
@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("test_vit"),
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        lambda: nn.TransformerEncoderLayer(8, 2),
        lambda: nn.Conv2d(3, 4, 3),
    ],
    ids=["ViT", "Swin", "torch's own", "nothing normalised"],
)
def test_transformers_and_networks_without_normalisation_keep_their_own(
    build: Callable[[], nn.Module], steps: int
) -> None:
    assert peak_rate(build, "scratch", steps) == DELICATE


@pytest.mark.parametrize("name", ["test_convnext", "mobilevit_xxs", "resnet18", "repvgg_a0"])
def test_normalised_convolutions_bear_it_whatever_normalises_them(name: str) -> None:
    assert peak_rate(lambda: timm.create_model(name), "scratch", 88) == SHORT


def test_a_network_from_python_is_known_by_what_its_normalisations_have_seen() -> None:
    fresh, trained = convolutional(), convolutional()
    trained(torch.ones(2, 3, 8, 8))

    assert [peak_rate(lambda: fresh, origin, 88) for origin in ("scratch", "object")] == [SHORT, SHORT]
    assert [peak_rate(lambda: trained, origin, 88) for origin in ("scratch", "object")] == [PRETRAINED, PRETRAINED]
    assert peak_rate(lambda: nn.Linear(2, 2), "object", 88) == PRETRAINED  # nothing tells


@pytest.mark.parametrize("origin", ["hub", "file", "artefact"])
def test_trained_weights_keep_theirs_and_are_not_built_to_be_asked(origin: str) -> None:
    def never() -> nn.Module:
        raise AssertionError("built")

    assert peak_rate(never, origin, 88) == PRETRAINED


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    data = load_data("digits")

    def make(**own: object) -> Plan:
        config = make_config(settings(**{"lr": None, "teacher_lr": None, **own}))
        return make_plan(config, data, config.teacher, config.student, Observer())

    return make


def test_a_plan_counts_each_networks_own_steps(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(teacher_epochs=1000, epochs=1, batch_size=64)

    assert (plan.teacher_lr, plan.lr) == (SCRATCH, SHORT)


def test_a_plan_counts_larger_batches_as_fewer_steps(plan_of: Callable[..., Plan]) -> None:
    assert plan_of(epochs=100, batch_size=16).lr < plan_of(epochs=100, batch_size=64).lr


def test_networks_that_learn_together_take_as_many_steps(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(objective="dml", epochs=1000)

    assert plan.teacher_lr == plan.lr == SCRATCH


def test_what_is_given_is_taken(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(teacher_lr=1e-4, lr=2e-4)

    assert (plan.teacher_lr, plan.lr) == (1e-4, 2e-4)
