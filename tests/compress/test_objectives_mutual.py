"""Two networks that train together."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_networks
import torch
import torch.nn.functional as F
from objective_samples import Says, numeric_gradient, randn
from objective_table import MUTUAL
from small import settings
from torch import Tensor

from iekd.compress import together
from iekd.compress.config_input import make_config
from iekd.compress.objectives import OBJECTIVES, ObjectiveSettings, build_mutual
from iekd.compress.objectives.mutual import DeepMutual, MutualWeights, Switchable, teacher_waits
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.together import networks_apart
from iekd.errors import InputError
from iekd.models.registry import Architecture, build
from iekd.models.taps import Features, Tapped


def pair(classes: int = 5) -> tuple[Tapped, Tapped]:
    torch.manual_seed(0)
    a, b = (Tapped(build(Architecture("timm", name), classes, 32)) for name in ("cifar_resnet20", "cifar_wrn_16_1"))
    return a, b


def task(name: str, **changes: object) -> DeepMutual:
    return build_mutual(name, pair(), image_size=32, settings=ObjectiveSettings(**changes))  # type: ignore[arg-type]


def batch(images: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    return randn(images, 3, 32, 32).float(), torch.arange(images) % classes


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


def softened(logits: Any, temperature: float) -> Any:
    e = np.exp(logits / temperature)
    return e / e.sum(1, keepdims=True)


def naive_terms(own: Any, other: Any, targets: Any) -> dict[str, float]:
    """Zhang et al. 2018, eq. 5: cross-entropy plus KL of one's own prediction from the other's; at T = 2, times T^2."""
    p, q = softened(own, 2.0), softened(other, 2.0)
    right = softened(own, 1.0)[range(len(targets)), targets]
    return {"task": 0.8 * float(-np.log(right).mean()), "follow": 1.5 * 4 * float((q * np.log(q / p)).sum(1).mean())}


# Of switokd: a teacher that learns, and one that is right against a student that is wrong in its own way, and waits.
@pytest.mark.parametrize(("kind", "waits"), [(DeepMutual, False), (Switchable, False), (Switchable, True)])
def test_values_and_gradients_on_logits_are_those_of_the_formula(kind: type[DeepMutual], waits: bool) -> None:
    targets = torch.tensor([0, 3, 4, 3])
    logits = {"a": randn(4, 5), "b": randn(4, 5, seed=1)}
    if waits:
        beliefs = {"a": targets, "b": (targets + 1) % 5}
        logits = {name: logits[name] + 8 * F.one_hot(belief, 5) for name, belief in beliefs.items()}
    a, b = (Says(Features(logits[name].requires_grad_(), ())) for name in "ab")
    found = kind(a, b, MutualWeights(task=0.8, follow=1.5, temperature=2.0))(torch.zeros(4, 3, 8, 8), targets)
    expected = {}
    for name, other in ("ab", "ba"):
        if waits and name == "a":
            assert not any(key.startswith("a.") for key in found)
            continue
        mine, theirs = (logits[which].detach().numpy() for which in (name, other))
        expected |= {f"{name}.{term}": value for term, value in naive_terms(mine, theirs, targets).items()}
        total = torch.stack([term for key, term in found.items() if key.startswith(name)]).sum()
        (gradient,) = torch.autograd.grad(total, logits[name], retain_graph=True)
        slope = numeric_gradient(lambda x, theirs=theirs: sum(naive_terms(x, theirs, targets).values()), mine)
        np.testing.assert_allclose(gradient.numpy(), slope, atol=1e-5)
    assert {key: term.item() for key, term in found.items()} == pytest.approx(expected, rel=1e-5)


every_mode = pytest.mark.parametrize("name", [name for name, _ in MUTUAL])


@every_mode
@pytest.mark.parametrize(("images", "classes"), [(1, 5), (1, 2), (6, 2)])
def test_small_batches_and_two_classes(name: str, images: int, classes: int) -> None:
    made = build_mutual(name, pair(classes=classes), image_size=32, settings=ObjectiveSettings()).train()
    found = made(*batch(images, classes))
    torch.stack(list(found.values())).sum().backward()
    assert all(bool(term.isfinite()) for term in found.values())
    gradients = [value.grad for value in made.parameters() if value.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@every_mode
def test_bf16_is_close_to_float32(name: str) -> None:
    made, (images, targets) = task(name).eval(), batch()
    with torch.no_grad():
        full = made(images, targets)
        with torch.autocast("cpu", torch.bfloat16):
            half = made(images, targets)
    assert all(term.dtype == torch.float32 for term in half.values())
    assert {key: term.item() for key, term in half.items()} == pytest.approx(
        {key: term.item() for key, term in full.items()}, rel=0.05, abs=0.01
    )


@every_mode
def test_the_order_of_a_batch_is_nothing(name: str) -> None:
    made, (images, targets) = task(name).eval(), batch()
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    with torch.no_grad():
        here, there = made(images, targets), made(images[order], targets[order])
    assert {key: term.item() for key, term in there.items()} == pytest.approx(
        {key: term.item() for key, term in here.items()}, rel=1e-4, abs=1e-6
    )


def test_no_network_is_moved_by_the_other_s_terms() -> None:
    made, (images, targets) = task("ie-dml").train(), batch()
    found = made(images, targets)
    torch.stack([term for key, term in found.items() if key.startswith("a.") and "recon" not in key]).sum().backward()
    assert all(value.grad is None for value in made.b.parameters())
    assert all(value.grad is not None for value in made.a.parameters())


@pytest.mark.parametrize("name", ["dml", "ie-dml", "switokd"])
def test_each_network_is_clipped_with_its_heads_and_nothing_twice(name: str) -> None:
    made = task(name)
    groups = [{id(parameter) for parameter in group} for group in networks_apart(made)]
    trained = {id(parameter) for parameter in made.parameters()}
    assert set.union(*groups) == trained
    assert sum(len(group) for group in groups) == len(trained)
    names = {id(parameter): key for key, parameter in made.named_parameters()}
    for group, network, number in ((groups[0], "a.", 0), (groups[2], "b.", 1)):
        own = {
            key
            for key in names.values()
            if key.startswith(network) or (key.startswith(f"lifts.{number}.") and ".heads." in key)
        }
        assert {names[parameter] for parameter in group} == own
    assert bool(groups[1] and groups[3]) == (name == "ie-dml")


def test_a_run_clips_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def fit(task: DeepMutual, *_: object, apart: list[list[Tensor]], **__: object) -> None:
        seen.extend(len(group) for group in apart)
        assert sum(seen) == len(list(task.parameters()))
        raise KeyboardInterrupt

    monkeypatch.setattr(together, "fit", fit)
    names = {"teacher": "tiny_networks:teacher", "student": "tiny_networks:student", "tap": "4"}
    config = make_config(settings(**names, objective="ie-dml", out=str(tmp_path / "run")))
    with pytest.raises(KeyboardInterrupt):
        run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill")
    assert len(seen) == 4


def test_exploration_of_both_is_bounded() -> None:
    made, (images, targets) = task("ie-dml").train(), batch()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    found: list[float] = []
    for _ in range(12):
        explore = [made(images, targets)[f"{network}.explore"] for network in "ab"]
        optimizer.zero_grad()
        torch.stack(explore).sum().backward()
        optimizer.step()
        found.extend(term.item() for term in explore)
    assert found[-1] < found[1] - 0.1
    assert found[-2] < found[0] - 0.1
    assert all(0 >= term >= -2 * 1.105 * (1 + 1e-6) for term in found)


TRANSFORMERS = (tiny_networks.transformer, tiny_networks.student)


@pytest.mark.parametrize("transfer", ["at", "ft", "vkd"])
@pytest.mark.parametrize(
    ("settings", "taps"),
    [
        ({"split": "random"}, (-1,)),
        ({"explore_form": "cosine"}, (-2, -1)),
        ({"explore_form": "cka"}, (-1,)),
        ({"inherit_fraction": 0.0}, (-1,)),
        ({"inherit_fraction": 1.0}, (-1,)),
    ],
    ids=["random", "cosine at two taps", "cka", "exploration alone", "inheritance alone"],
)
@pytest.mark.parametrize("networks", ["convolutions", "a transformer among them"])
def test_ie_dml_takes_transfers_forms_splits_and_taps(
    networks: str, settings: dict[str, Any], taps: tuple[int, ...], transfer: str
) -> None:
    torch.manual_seed(0)
    made_of, size = (TRANSFORMERS, 16) if networks != "convolutions" else ((tiny_networks.teacher,) * 2, 16)
    both = [Tapped(make(5), taps, size) for make in made_of]
    made = build_mutual(
        "ie-dml", both, image_size=size, settings=ObjectiveSettings(**settings), transfer=transfer
    ).train()
    for dtype in (torch.float32, torch.bfloat16):
        made.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = made(randn(8, 3, size, size).float(), torch.arange(8) % 5)
        asked = {"inherit", "explore"}
        if "inherit_fraction" in settings:
            asked = {"inherit"} if settings["inherit_fraction"] else {"explore"}
        named = {re.sub(r"[\d]|[ab]\.", "", key) for key in found}
        assert named & {"inherit", "explore"} == asked
        assert all(bool(term.isfinite()) for term in found.values())
        torch.stack(list(found.values())).sum().backward()
        for network in (made.a, made.b):
            gradients = [value.grad for value in network.parameters() if value.grad is not None]
            assert gradients
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def _waits(teacher: list[float], student: list[float]) -> bool:
    """For predictions rather than logits; the first class is right."""
    return teacher_waits(torch.tensor([teacher]).log(), torch.tensor([student]).log(), torch.tensor([0]), 1.0)


def test_the_teacher_waits_only_when_far_ahead() -> None:
    assert _waits([0.9, 0.09, 0.01], [0.1, 0.01, 0.89]), "right, against a student that is wrong in its own way"
    assert not _waits([0.9, 0.05, 0.05], [0.3, 0.35, 0.35]), "a student on the way from chance to the teacher"
    assert not _waits([0.1, 0.01, 0.89], [0.9, 0.09, 0.01]), "behind its student"


def test_the_switch_is_the_published_threshold() -> None:
    """On batches of which some lie between the threshold and what it would be with another share in its exponent."""
    found, told_apart = set(), {"none": 0, "half": 0, "the student's": 0}
    for seed in range(200):
        targets = torch.arange(4) % 5
        teacher, student = randn(4, 5, seed=seed), randn(4, 5, seed=1000 + seed)
        teacher += (1 + seed % 3) * F.one_hot(targets, 5)
        p_t, p_s, y = teacher.softmax(1), student.softmax(1), F.one_hot(targets, 5).double()
        gap, e_s, e_t = (float((x - z).abs().sum(1).mean()) for x, z in ((p_s, p_t), (p_s, y), (p_t, y)))

        def waits(share: float, e_s: float = e_s, e_t: float = e_t, gap: float = gap) -> bool:
            return gap > e_s - math.exp(-share) * e_t and e_t < e_s

        expected = waits(e_t / (e_s + e_t))
        assert teacher_waits(teacher, student, targets, 1.0) == expected
        found.add(expected)
        for name, share in (("none", 0.0), ("half", 0.5), ("the student's", e_s / (e_s + e_t))):
            told_apart[name] += waits(share) != expected
    assert found == {True, False}
    assert min(told_apart.values()) > 0, told_apart


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
    for networks in ((a,), (a, a), (a, Tapped(a.network))):
        with pytest.raises(InputError, match="trains two networks together, not 1"):
            build_mutual("dml", networks, image_size=32, settings=settings)
    with pytest.raises(InputError, match="both networks begin with the same weights"):
        build_mutual("dml", (a, Tapped(copy.deepcopy(a.network))), image_size=32, settings=settings)
    with pytest.raises(InputError, match="unknown mode of mutual learning"):
        build_mutual("dmll", pair(), image_size=32, settings=settings)
    with pytest.raises(InputError, match="needs a finished teacher"):
        build_mutual("ie-dml", pair(), image_size=32, settings=ObjectiveSettings(split="relevance"))
    with pytest.raises(InputError, match=r"unknown transfer for ie-dml 'od'.*Valid: at, ft, vkd"):
        build_mutual("ie-dml", pair(), image_size=32, settings=settings, transfer="od")


@pytest.mark.parametrize("name", [name for name, _ in MUTUAL])
def test_networks_of_different_classes_are_refused(name: str) -> None:
    networks = (pair(classes=5)[0], pair(classes=7)[1])
    with pytest.raises(InputError, match=f"{name} compares logits, and one network has 5 classes, the other 7"):
        build_mutual(name, networks, image_size=32, settings=ObjectiveSettings())


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("given", [None, 3.0])
def test_ie_dml_pulls_as_hard_by_all_channels_as_by_some(given: float | None, fraction: float) -> None:
    """There is no plain form of it, whose weight a share of 1 could take; ten times its own is harmful."""
    made = task("ie-dml", inherit_fraction=fraction, inherit_weight=given)
    weights = {lift.weights.inherit for lifts in made.lifts for lift in lifts}  # type: ignore[union-attr]
    assert weights == {OBJECTIVES["ie-dml"].defaults["inherit_weight"] if given is None else given}


def test_a_mode_is_what_the_catalogue_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further mode is its class and its entry; a weight of inheritance makes it lift a transfer."""
    given = OBJECTIVES["switokd"]
    for name, defaults in (("plain", {}), ("lifted", {"inherit_weight": 1.0, "explore_weight": 1.0})):
        entry = dataclasses.replace(given, name=name, defaults={**given.defaults, **defaults})
        monkeypatch.setitem(OBJECTIVES, name, entry)
        made = build_mutual(name.upper(), pair(), image_size=32, settings=ObjectiveSettings())
        assert type(made) is Switchable
        assert bool(len(made.lifts[0])) == (name == "lifted")
