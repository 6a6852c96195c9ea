"""Two networks that train together, without a finished teacher.

Each class is a task as the trainer knows it: it holds everything trainable, and its forward takes images and targets
and returns named loss terms whose sum is minimised.  Terms of the first network begin with ``a.``, of the second with
``b.``; either network, or both, can be deployed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from iekd.compress.objectives.build import load, make_lift, require_as_many, resolved
from iekd.compress.objectives.catalogue import OBJECTIVES, Entry
from iekd.compress.objectives.lift import InheritExplore, Learners, records, suffix
from iekd.compress.objectives.logits import distillation_loss
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer
from iekd.errors import InputError, unknown_name
from iekd.models.taps import Features, Tapped


def build_mutual(
    name: str, networks: Sequence[Tapped], *, image_size: int, settings: ObjectiveSettings, transfer: str = "ft"
) -> DeepMutual:
    """The task that trains two networks together.

    Args:
        name: ``dml``, ``ie-dml`` or ``switokd``.
        networks: the two; with ``switokd`` the first is the teacher.
        image_size: height and width of the images.
        settings: weights, temperature and split.
        transfer: what ``ie-dml`` lifts.

    Raises:
        InputError: another name, not two networks or one of them twice, networks of the same weights or of different
            classes, or settings that need a finished teacher.
    """
    name = name.lower()
    modes = [entry.name for entry in OBJECTIVES.values() if entry.kind == "mutual"]
    if name not in modes:
        raise unknown_name("mode of mutual learning", name, modes)
    distinct = len({id(tapped.network) for tapped in networks})  # one network may be tapped twice
    if len(networks) != 2 or distinct != 2:
        raise InputError(f"{name} trains two networks together, not {distinct}.", "Give two different ones.")
    entry = OBJECTIVES[name]
    a, b = networks
    if _are_twins(a.network, b.network):
        raise InputError(
            f"{name}: both networks begin with the same weights, and would stay one network.",
            "Give two different ones, or let one start from scratch.",
        )
    _require_same_classes(name, *(tapped.classes(image_size) for tapped in networks))
    weights = MutualWeights(
        settings.task_weight, resolved(entry, settings, "kd_weight"), resolved(entry, settings, "temperature")
    )
    kind: type[DeepMutual] = load(entry)
    if "inherit_weight" not in entry.defaults:
        return kind(a, b, weights)
    lift = _lift_for(entry, settings, transfer)
    shapes = [tapped.shapes(image_size) for tapped in networks]
    require_as_many(*shapes)
    of_a, of_b = (
        [make_lift(lift, *pair, settings) for pair in zip(other, own, strict=True)]
        for own, other in (shapes, shapes[::-1])
    )
    return kind(a, b, weights, (of_a, of_b))


def _are_twins(a: nn.Module, b: nn.Module) -> bool:
    weights, others = dict(a.named_parameters()), dict(b.named_parameters())
    return (
        bool(weights)
        and weights.keys() == others.keys()
        and all(
            value.shape == others[name].shape and torch.equal(value.cpu(), others[name].cpu())
            for name, value in weights.items()
        )
    )


def _require_same_classes(name: str, a: int, b: int) -> None:
    if a != b:
        raise InputError(
            f"{name} compares logits, and one network has {a} classes, the other {b}.", "Build both for the data's."
        )


def _lift_for(entry: Entry, settings: ObjectiveSettings, transfer: str) -> Entry:
    """The lift of ``transfer`` with the weights of a mutual mode."""
    # What a transfer estimates from a finished teacher, such as OD's margins, nobody estimates here.
    lifts = {
        lift.name: lift
        for lift in OBJECTIVES.values()
        if lift.kind == "lift" and load(lift).prepare is Transfer.prepare
    }
    if f"ie-{transfer}" not in lifts:
        raise unknown_name(f"transfer for {entry.name}", transfer, {lift.removeprefix("ie-") for lift in lifts})
    if settings.split == "relevance":
        raise InputError(
            "a split by relevance needs a finished teacher, which mutual learning has not.", "Use natural or random."
        )
    lift = lifts[f"ie-{transfer}"]
    alone = {"transfer_weight": entry.defaults["inherit_weight"]}  # where all inherits: no plain form pulls otherwise
    return replace(lift, defaults={**lift.defaults, **entry.defaults, **alone})


class MutualWeights(NamedTuple):
    """Weights of the terms, and the temperature of the logits."""

    task: float = 1.0
    follow: float = 1.0
    temperature: float = 1.0


class DeepMutual(nn.Module):
    """``dml``: each network follows the labels and the other's logits (Zhang et al. 2018, eq. 5 and 6).

    With lifts it is ``ie-dml`` (Huang et al. 2021, section 3.4): a part of each network's channels inherits the other's
    code, the rest leaves it.  A transfer's teacher side, such as FT's auto-encoder, learns beside them
    (``reconstruction``) from maps without gradient.

    Both networks take their step at once, from the same batch; the paper's alternate.

    Args:
        a: one network.
        b: the other.
        weights: of the terms.
        lifts: for ``ie-dml``, those of ``a`` (the teacher's side looking at ``b``) and those of ``b``, one a tap.
    """

    def __init__(
        self,
        a: Tapped,
        b: Tapped,
        weights: MutualWeights | None = None,
        lifts: tuple[Sequence[InheritExplore], Sequence[InheritExplore]] | None = None,
    ) -> None:
        super().__init__()
        self.a = a
        self.b = b
        self.weights = weights or MutualWeights()
        self._lifts = [list(own) for own in lifts or ((), ())]
        self.lifts = nn.ModuleList(nn.ModuleList(own) for own in self._lifts)
        self.learners = nn.ModuleList(Learners(own) for own in self._lifts)

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Terms for images (B, 3, H, W) and class indices (B,)."""
        answers = (self.a(images), self.b(images))
        terms: dict[str, Tensor] = {}
        for number, name in enumerate("ab"):
            own, other = answers[number], _detached(answers[1 - number])
            found = self.own_terms(own, other, targets) | self._feature_terms(number, own, other)
            terms |= {f"{name}.{term}": value for term, value in found.items()}
        return terms

    def own_terms(self, own: Features, other: Features, targets: Tensor) -> dict[str, Tensor]:
        """One network's terms on labels and on the other's logits."""
        weights = self.weights
        follow = distillation_loss(own.logits, other.logits, weights.temperature)
        return {
            "task": weights.task * F.cross_entropy(own.logits.float(), targets),
            "follow": weights.follow * follow,
        }

    def _feature_terms(self, number: int, own: Features, other: Features) -> dict[str, Tensor]:
        lifts = self._lifts[number]
        terms: dict[str, Tensor] = {}
        if not lifts:
            return terms
        if len(self.learners[number].parts):  # type: ignore[arg-type]
            terms |= self.learners[number](other.taps)
        for tap, (lift, code) in enumerate(zip(lifts, records(lifts, other.taps), strict=True)):
            found = lift(own.taps[tap], code)
            terms |= {term + suffix(tap, len(lifts)): value for term, value in found.items()}
        return terms


class Switchable(DeepMutual):
    """``switokd``: ``a`` is the teacher and waits while it is too far ahead of ``b`` (Qian et al., ECCV 2022).

    With p the softened predictions, y the labels and G = |p_b - p_a| the distillation gap (L1, mean over the batch),
    the teacher waits in steps with G > delta = |p_b - y| - exp(-|p_a - y| / (|p_b - y| + |p_a - y|)) |p_a - y|, and
    only while it is the better one, as in the authors' code.  Its terms are then left out: its weights get no gradient,
    and an optimiser that passes over such weights leaves them alone.
    """

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Terms for images (B, 3, H, W) and class indices (B,); those of ``a`` only in steps in which it learns."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise InputError(
                "switokd trains in one process: several could disagree on when the teacher waits.",
                "Start it without torchrun or accelerate launch, or use --objective dml.",
            )
        teacher, student = self.a(images), self.b(images)
        terms = {f"b.{name}": term for name, term in self.own_terms(student, _detached(teacher), targets).items()}
        if not teacher_waits(teacher.logits.detach(), student.logits.detach(), targets, self.weights.temperature):
            own = self.own_terms(teacher, _detached(student), targets)
            terms |= {f"a.{name}": term for name, term in own.items()}
        return terms


def teacher_waits(teacher: Tensor, student: Tensor, targets: Tensor, temperature: float) -> bool:
    """Is the distillation gap beyond the switching threshold?

    Args:
        teacher: logits (B, classes).
        student: logits (B, classes).
        targets: class indices (B,).
        temperature: softens both.
    """
    p_t, p_s = (F.softmax(logits.float() / temperature, dim=1) for logits in (teacher, student))
    labels = F.one_hot(targets, teacher.shape[1])
    gap, student_error, teacher_error = (
        (x - y).abs().sum(1).mean() for x, y in ((p_s, p_t), (p_s, labels), (p_t, labels))
    )
    share = teacher_error / (student_error + teacher_error).clamp(min=1e-12)
    threshold = student_error - torch.exp(-share) * teacher_error
    return bool((gap > threshold) & (teacher_error < student_error))


def _detached(features: Features) -> Features:
    return Features(features.logits.detach(), tuple(tap.detach() for tap in features.taps))
