"""The lift: what it reduces to, its split, several taps and sizes, and several teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_samples import STUDENT, TEACHER, answers, objective, randn
from objective_table import TRANSFERS
from torch import Tensor

from iekd.compress.objectives import OBJECTIVES, EnsembleTeacher, ObjectiveSettings, build_objective
from iekd.compress.objectives.build import taps_for
from iekd.compress.objectives.overhaul import OverhaulTransfer
from iekd.compress.objectives.split import SPLITS, channel_relevance, split_channels
from iekd.compress.objectives.transfer import at_size
from iekd.errors import InputError
from iekd.models.registry import Architecture, build
from iekd.models.taps import Features, Tapped, TapShape


def terms(made: Any, student: Features, teacher: Features, targets: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = made(student, made.record(teacher), targets)
    return found


def assert_equal_or_opposite(one: Tensor, other: Tensor, sign: int, tap: Tensor) -> None:
    """To the last bit, in value and gradient."""
    assert torch.equal(one, sign * other)
    gradients = [torch.autograd.grad(term, tap)[0] for term in (one, other)]
    assert bool(gradients[0].any())
    assert torch.equal(gradients[0], sign * gradients[1])


@pytest.mark.parametrize("name", TRANSFERS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("weights", [{}, {"inherit_weight": 3.0, "transfer_weight": 3.0}], ids=["defaults", "given"])
def test_a_fraction_of_one_is_exactly_the_plain_transfer(name: str, split: str, weights: dict[str, float]) -> None:
    student, teacher, targets = answers()
    whole, plain = objective(f"ie-{name}", inherit_fraction=1.0, split=split, **weights), objective(name, **weights)
    for made in (whole, plain):
        made.prepare(student, teacher)
    plain.load_state_dict(whole.state_dict())
    lifted, bare = (terms(made.eval(), student, teacher, targets) for made in (whole, plain))
    assert set(lifted) == {"task", "inherit"}
    assert_equal_or_opposite(lifted["inherit"], bare["transfer"], 1, student.taps[0])


def test_a_weight_of_inheritance_that_is_given_holds_at_a_fraction_of_one() -> None:
    given, left_open = (objective("ie-at", inherit_fraction=1.0, inherit_weight=weight) for weight in (3.0, None))
    assert given.lifts[0].weights.inherit == 3.0
    assert left_open.lifts[0].weights.inherit == OBJECTIVES["at"].defaults["transfer_weight"]


@pytest.mark.parametrize("name", TRANSFERS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_fraction_of_zero_is_exactly_exploration_alone(name: str, split: str) -> None:
    student, teacher, targets = answers()
    made = objective(f"ie-{name}", inherit_fraction=0.0, split=split)
    plain = objective(name, transfer_weight=made.lifts[0].weights.explore)
    for each in (made, plain):
        each.prepare(student, teacher)
    state = made.state_dict()
    plain.load_state_dict(
        {
            key: value if "index" in key else state[key.replace("heads.inherit", "heads.explore")]
            for key, value in plain.state_dict().items()
        }
    )
    alone, bare = (terms(each.eval(), student, teacher, targets) for each in (made, plain))
    assert set(alone) == {"task", "explore"}
    assert_equal_or_opposite(alone["explore"], bare["transfer"], -1, student.taps[0])


@pytest.mark.parametrize("name", TRANSFERS)
def test_inheritance_pulls_and_exploration_pushes(name: str) -> None:
    made, (student, teacher, targets) = objective(f"ie-{name}"), answers(16)
    made.prepare(student, teacher)
    optimizer = torch.optim.Adam([*student.taps, *(p for p in made.parameters() if p.requires_grad)], lr=2e-2)
    history = []
    for _ in range(60):
        found = terms(made, student, teacher, targets)
        optimizer.zero_grad()
        (found["inherit"] + found["explore"]).backward()
        optimizer.step()
        history.append((found["inherit"].item(), found["explore"].item()))
    assert history[-1][0] < 0.8 * history[0][0]
    assert history[-1][1] < history[0][1]


@pytest.mark.parametrize("split", ["natural", "random"])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_the_split_parts_the_channels(split: str, fraction: float) -> None:
    inherit, explore = split_channels(12, fraction, split, 3)
    assert sorted([*inherit.tolist(), *explore.tolist()]) == list(range(12))
    assert len(inherit) == 12 * fraction
    assert torch.equal(inherit, split_channels(12, fraction, split, 3)[0])
    if split == "random" and 0 < fraction < 1:
        assert not torch.equal(inherit, split_channels(12, fraction, split, 4)[0])


def test_a_split_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(InputError, match="leaves a part empty"):
        split_channels(4, 0.05, "natural", 0)
    with pytest.raises(InputError, match="unknown split"):
        split_channels(4, 0.5, "naturall", 0)


def test_a_split_by_relevance_gives_the_channels_most_like_the_teacher_to_inheritance() -> None:
    code = randn(32, 6, 4, 4)
    alike = [7, 2, 9]
    tap = randn(32, 12, 4, 4, seed=1)
    for channel, source in zip(alike, (0, 3, 5), strict=True):
        tap[:, channel] = 4 * code[:, source] + 0.1 * tap[:, channel]
    relevance = channel_relevance(tap, code)
    assert bool((relevance.abs() <= 1 + 1e-9).all())
    assert set(relevance.argsort(descending=True)[:3].tolist()) == set(alike)
    assert channel_relevance(3 * tap + 1, 0.5 * code).tolist() == pytest.approx(relevance.tolist(), rel=1e-6)


def test_a_channel_that_is_related_outranks_noise_of_more_dimensions() -> None:
    """The biased CKA of noise grows with its dimensions, here beyond that of a related channel of one dimension."""
    code = randn(256, 6, 4, 4)
    tap = randn(256, 8, 8, 8, seed=1)
    pattern = randn(1, 8, 8, seed=2)
    for channel, source in ((5, 0), (2, 3)):
        tap[:, channel] = code[:, source, 1, 1, None, None] * pattern
    kernels = [
        (flat - flat.mean(0)) @ (flat - flat.mean(0)).t() for flat in (*tap.flatten(2).unbind(1), code.flatten(1))
    ]
    biased = [((kernel * kernels[-1]).sum() / kernel.norm()).item() for kernel in kernels[:-1]]
    assert max(biased[2], biased[5]) < min(value for channel, value in enumerate(biased) if channel not in (2, 5))
    relevance = channel_relevance(tap, code)
    assert set(relevance.argsort(descending=True)[:2].tolist()) == {2, 5}


def test_relevance_needs_a_probe_of_several_images() -> None:
    with pytest.raises(InputError, match="needs 4 training images or more, not 3"):
        channel_relevance(randn(3, 4, 2, 2), randn(3, 5))


def test_relevance_is_settled_by_the_probe_and_stored() -> None:
    made, (student, teacher, targets) = objective("ie-at", split="relevance"), answers(16)
    with pytest.raises(RuntimeError, match="probe"):
        terms(made, student, teacher, targets)
    made.prepare(student, teacher)
    inherit = made.lifts[0].inherit_index.tolist()
    assert len(inherit) == 6
    other = objective("ie-at", split="relevance")
    other.load_state_dict(made.state_dict())
    assert other.lifts[0].inherit_index.tolist() == inherit
    assert terms(other, student, teacher, targets)["inherit"].isfinite()


@pytest.mark.parametrize("name", TRANSFERS)
@pytest.mark.parametrize("side", [2, 7])
def test_sizes_are_brought_together(name: str, side: int) -> None:
    made = objective(name, student=(TapShape(12, side, side),))
    student, teacher, targets = answers(student=(TapShape(12, side, side),))
    made.prepare(student, teacher)
    assert terms(made, student, teacher, targets)["transfer"].isfinite()


@pytest.mark.parametrize("name", TRANSFERS)
def test_several_taps_are_numbered(name: str) -> None:
    made = objective(f"ie-{name}", teacher=TEACHER * 2, student=STUDENT * 2)
    student, teacher, targets = answers(teacher=TEACHER * 2, student=STUDENT * 2)
    made.prepare(student, teacher)
    assert set(terms(made, student, teacher, targets)) == {"task", "inherit0", "explore0", "inherit1", "explore1"}
    pretraining = made.pretraining()
    if pretraining is not None:
        assert set(pretraining(teacher.taps)) == {"reconstruction0", "reconstruction1"}


def test_taps_must_pair_up() -> None:
    with pytest.raises(InputError, match="2 taps of the teacher against 1"):
        objective("ie-ft", teacher=TEACHER * 2)


def test_attention_over_one_position_is_refused() -> None:
    with pytest.raises(InputError, match=r"have only one.*--tap auto"):
        objective("ie-at", student=(TapShape(12, 1, 1),))


def test_the_exploration_margin_stops_the_push() -> None:
    student, teacher, targets = answers()
    free, held = objective("ie-ft"), objective("ie-ft", explore_margin=0.01)
    held.load_state_dict(free.state_dict())
    for made in (free, held):
        made.eval()
    assert terms(free, student, teacher, targets)["explore"] < terms(held, student, teacher, targets)["explore"]
    student.taps[0].grad = None
    terms(held, student, teacher, targets)["explore"].backward()
    assert student.taps[0].grad is None or not bool(student.taps[0].grad.any())


@pytest.fixture(scope="module")
def ensemble() -> EnsembleTeacher:
    torch.manual_seed(0)
    members = [Tapped(build(Architecture("timm", name), 5, 32)) for name in ("cifar_resnet20", "cifar_wrn_16_2")]
    return EnsembleTeacher(members).eval()


def test_an_ensemble_answers_with_mean_logits_and_joint_taps(ensemble: EnsembleTeacher) -> None:
    images = randn(3, 3, 32, 32).float()
    with torch.no_grad():
        answer = ensemble(images)
        own = [member(images) for member in ensemble.teachers]
    assert torch.allclose(answer.logits, (own[0].logits + own[1].logits) / 2)
    assert torch.equal(answer.taps[0], torch.cat([each.taps[0] for each in own], 1))
    assert ensemble.shapes(32) == (TapShape(64 + 128, 8, 8),)


@pytest.fixture(scope="module")
def twins() -> EnsembleTeacher:
    """Two of one width, as transfers need that have no common code otherwise; read before the last activation."""
    torch.manual_seed(0)
    taps = taps_for("od", (-1,))
    members = [Tapped(build(Architecture("timm", "cifar_resnet20"), 5, 32), taps, 32) for _ in range(2)]
    return EnsembleTeacher(members).eval()


def od_under(teachers: EnsembleTeacher) -> Any:
    return build_objective(
        "od",
        teacher=teachers.shapes(32),
        student=STUDENT,
        classes=5,
        settings=ObjectiveSettings(),
        ensemble=teachers.members(32),
    )


@pytest.mark.parametrize("name", ["od", "ie-od+kd", "vkd", "ie-vkd"])
def test_a_student_learns_from_an_ensemble_of_one_width(twins: EnsembleTeacher, name: str) -> None:
    test_a_student_learns_from_an_ensemble(twins, name)


def test_each_of_an_ensembles_teachers_has_margins_of_its_own_and_a_word_where_it_has_none(
    twins: EnsembleTeacher,
) -> None:
    made = od_under(twins)
    with torch.no_grad():
        teacher = twins(randn(4, 3, 32, 32).float())
    student, _, _ = answers(4)
    made.prepare(student, teacher)
    assert made.remarks() == ()
    (lift,) = made.lifts
    for member, own in zip(lift.transfer.members, torch.split(teacher.taps[0], 64, 1), strict=True):
        alone = OverhaulTransfer(TapShape(64, 4, 4), ObjectiveSettings())
        alone.prepare(at_size(own, (4, 4)))
        assert torch.equal(member.margin, alone.margin)
    made.prepare(student, teacher._replace(taps=(teacher.taps[0].relu(),)))
    assert made.remarks() == (lift.transfer.members[0].remark(),)
    assert "all margins are 0" in made.remarks()[0]


@pytest.mark.parametrize("name", ["ie-ft+kd", "ie-at", "kd"])
def test_a_student_learns_from_an_ensemble(ensemble: EnsembleTeacher, name: str) -> None:
    made = build_objective(
        name,
        teacher=ensemble.shapes(32),
        student=(TapShape(12, 4, 4),),
        classes=5,
        settings=ObjectiveSettings(),
        ensemble=ensemble.members(32),
    )
    student, _, targets = answers(4)
    with torch.no_grad():
        teacher = ensemble(randn(4, 3, 32, 32).float())
    pretraining = made.pretraining()
    if pretraining is not None:
        assert pretraining(teacher.taps)["reconstruction"].isfinite()
        pretraining.requires_grad_(False)
    made.prepare(student, teacher)
    found = terms(made, student, teacher, targets)
    torch.stack(list(found.values())).sum().backward()
    assert all(bool(term.isfinite()) for term in found.values())
    assert student.logits.grad is not None


def test_codes_without_a_mean_are_refused(ensemble: EnsembleTeacher) -> None:
    with pytest.raises(InputError, match="have no mean"):
        od_under(ensemble)
