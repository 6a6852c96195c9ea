"""What every objective must do, driven by one table."""

from __future__ import annotations

import io
import math
import re

import pytest
import torch
from objective_samples import STUDENT, TEACHER, answers, objective
from objective_table import MUTUAL, TABLE, Row

from iekd.compress.objectives import OBJECTIVES, Objective, build_objective, describe_objectives
from iekd.compress.objectives.build import load
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.objectives.transfer import Transfer
from iekd.errors import InputError
from iekd.models.taps import Features

every_row = pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])


def prepared(row: Row, classes: int = 5) -> Objective:
    """The row's objective after its pre-training and its probe batch."""
    made = objective(row.name, classes, **row.settings)
    student, teacher, _ = answers(16, classes)
    with torch.no_grad():
        made.prepare(student, teacher)
    return made


def test_the_table_has_every_objective() -> None:
    in_table = {part for row in TABLE for part in row.name.split("+")} | {name for name, _ in MUTUAL}
    assert in_table == {entry.name for entry in describe_objectives()}


def _learns(part: str) -> bool:
    """Does a term learn something from the teacher beforehand?"""
    entry = OBJECTIVES[part]
    return entry.kind in ("transfer", "lift") and load(entry).learner is not Transfer.learner


@every_row
def test_pretraining_reports_finite_losses_that_fall(row: Row) -> None:
    pretraining = objective(row.name, **row.settings).pretraining()
    assert (pretraining is not None) == any(map(_learns, row.name.split("+")))
    if pretraining is None:
        return
    pretraining.requires_grad_(True).train()
    optimizer = torch.optim.Adam(pretraining.parameters(), lr=1e-2)
    _, teacher, _ = answers(16)
    losses = []
    for _ in range(20):
        terms = pretraining(teacher.taps)
        assert set(terms) == {"reconstruction"}
        optimizer.zero_grad()
        terms["reconstruction"].backward()
        optimizer.step()
        losses.append(terms["reconstruction"].item())
    assert losses[-1] < 0.9 * losses[0]


@every_row
def test_terms_are_named_and_reach_student_and_heads(row: Row) -> None:
    made, (student, teacher, targets) = prepared(row), answers()
    found = made(student, made.record(teacher), targets)
    assert set(found) == row.terms
    assert all(term.dim() == 0 for term in found.values())
    torch.stack(list(found.values())).sum().backward()
    assert student.logits.grad is not None
    features = {"inherit", "explore", "transfer"} & row.terms
    assert (student.taps[0].grad is not None) == bool(features)
    if features:
        assert bool((student.taps[0].grad.flatten(2).abs().sum((0, 2)) > 0).all()), "every channel is pulled or pushed"
    missing = [key for key, value in made.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []


@every_row
def test_training_lowers_its_own_terms_and_leaves_the_teachers_side_alone(row: Row) -> None:
    """The labels, which any objective has, are left out: what falls is what the teacher has to say."""
    own = row.terms - {"task"} or {"task"}
    made, (student, teacher, targets) = prepared(row).train(), answers(16)
    frozen = {key: value.clone() for key, value in made.state_dict().items() if ".transfer." in key}
    trained = [student.logits, *student.taps, *(p for p in made.parameters() if p.requires_grad)]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(30):
        found = made(student, made.record(teacher), targets)
        loss = torch.stack([found[term] for term in own]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])
    state = made.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in frozen.items()), "batch statistics included"


@every_row
def test_the_state_goes_round_through_a_file(row: Row) -> None:
    made, (student, teacher, targets) = prepared(row), answers()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        settings = ObjectiveSettings(**{**row.settings, "seed": 11})
        other = build_objective(row.name, teacher=TEACHER, student=STUDENT, classes=5, settings=settings)
    other.load_state_dict(torch.load(file, weights_only=True))
    for each in (made, other):
        each.eval()
    with torch.no_grad():
        mine, theirs = (each(student, each.record(teacher), targets) for each in (made, other))
    assert {name: term.item() for name, term in mine.items()} == {name: term.item() for name, term in theirs.items()}


@every_row
def test_records_are_compact_and_survive_half_precision(row: Row) -> None:
    made, (student, teacher, targets) = prepared(row).eval(), answers()
    record = made.record(Features(teacher.logits, tuple(40 * tap for tap in teacher.taps)))
    assert all(code.requires_grad is False and code.shape[0] == 8 for code in record.codes)
    assert sum(code[0].numel() for code in record.codes) <= teacher.taps[0][0].numel()
    halves = type(record)(record.logits.half().float(), tuple(code.half().float() for code in record.codes))
    full, half = (made(student, each, targets) for each in (record, halves))
    assert {name: half[name].item() for name in half} == pytest.approx(
        {name: full[name].item() for name in full}, rel=2e-3, abs=2e-3
    )


def batches_and_classes(row: Row) -> list[tuple[int, int]]:
    """Two classes are refused by some terms, which test_objectives_logits.py holds."""
    fewest = max(OBJECTIVES[part].fewest_classes for part in row.name.split("+"))
    return [(images, classes) for images, classes in ((1, 5), (1, 2), (6, 2)) if classes >= fewest]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("row", "batch", "classes"),
    [
        pytest.param(row, *sizes, id=f"{row.name}-{sizes[0]}-{sizes[1]}")
        for row in TABLE
        for sizes in batches_and_classes(row)
    ],
)
def test_small_batches_two_classes_and_bf16(row: Row, batch: int, classes: int, dtype: torch.dtype) -> None:
    made, (student, teacher, targets) = prepared(row, classes).train(), answers(batch, classes, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = made(student, made.record(teacher), targets)
    assert all(term.dtype == torch.float32 and bool(term.isfinite()) for term in found.values())
    torch.stack(list(found.values())).sum().backward()
    gradients = [value.grad for value in (student.logits, *student.taps, *made.parameters()) if value.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def lowest(row: Row, transfer: str) -> float:
    """What an exploration term of weight 1 cannot fall below."""
    form, margin = row.settings.get("explore_form", "distance"), row.settings.get("explore_margin")
    furthest = load(OBJECTIVES[transfer]).furthest
    return {"cosine": 0, "cka": -1, "distance": -min(furthest, margin or math.inf)}[form]


@pytest.mark.parametrize("row", [row for row in TABLE if "explore" in row.terms], ids=lambda row: row.name)
def test_exploration_is_bounded(row: Row) -> None:
    made, (student, teacher, targets) = prepared(row).train(), answers(16)
    optimizer = torch.optim.Adam([*student.taps, *(p for p in made.parameters() if p.requires_grad)], lr=0.1)
    first = None
    for _ in range(60):
        explore = made(student, made.record(teacher), targets)["explore"]
        first = explore.item() if first is None else first
        optimizer.zero_grad()
        explore.backward()
        optimizer.step()
    lift = row.name.split("+")[0]
    weight = OBJECTIVES[lift].defaults["explore_weight"]
    assert explore.item() < first, "it pushes"
    assert math.isfinite(explore.item())
    assert explore.item() >= weight * lowest(row, lift.removeprefix("ie-")) * (1 + 1e-6)


@every_row
def test_bf16_is_close_to_float32(row: Row) -> None:
    made = prepared(row).eval()
    full, half = ({}, {})
    for dtype, found in ((torch.float32, full), (torch.bfloat16, half)):
        student, teacher, targets = answers(dtype=dtype)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found |= {key: term.item() for key, term in made(student, made.record(teacher), targets).items()}
    assert half == pytest.approx(full, rel=0.03, abs=0.01)


@pytest.mark.parametrize("name", ["ie-fit", "nothing-like-it", "kd+", ""])
def test_unknown_objectives_list_the_valid_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        objective(name)
    assert "unknown objective" in caught.value.message
    assert ("Did you mean ie-ft" in caught.value.hint) == (name == "ie-fit")
    listed = set(re.findall(r"[a-z-]+", caught.value.hint.replace("+", " ")))
    assert {entry.name for entry in describe_objectives()} <= listed


@pytest.mark.parametrize(("name", "words"), [("ft+ie-ft", "several transfers"), ("ie-ft+dml", "stands alone")])
def test_combinations_that_make_no_sense_are_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        objective(name)
