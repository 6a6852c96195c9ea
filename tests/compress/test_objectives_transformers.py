"""Transformers as students and as teachers of every transfer, plain and lifted."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_networks
import torch
from objective_table import TRANSFERS
from small import settings
from torch import nn

import iekd
from iekd.compress.objectives import ObjectiveSettings, build_objective
from iekd.models.taps import Tapped

PAIRS = {
    "student": (tiny_networks.teacher, tiny_networks.transformer),
    "teacher": (tiny_networks.transformer, tiny_networks.student),
    "both": (tiny_networks.transformer, tiny_networks.transformer),
}


@pytest.mark.parametrize("role", PAIRS)
@pytest.mark.parametrize("name", [lift + transfer for transfer in TRANSFERS for lift in ("", "ie-")])
def test_every_transfer_moves_a_transformer_and_learns_from_one(name: str, role: str) -> None:
    torch.manual_seed(0)
    networks = [make(5) for make in PAIRS[role]]
    teacher, student = (Tapped(network, ("auto",), 16) for network in networks)
    teacher.eval().requires_grad_(False)
    made = build_objective(
        name, teacher=teacher.shapes(16), student=student.shapes(16), classes=5, settings=ObjectiveSettings()
    )
    pretraining = made.pretraining()
    if pretraining is not None:
        pretraining.requires_grad_(False)
    images, targets = torch.randn(16, 3, 16, 16), torch.arange(16) % 5
    with torch.no_grad():
        made.prepare(student.eval()(images), teacher(images))
    task = nn.ModuleList([student, made]).train()
    optimizer = torch.optim.Adam([value for value in task.parameters() if value.requires_grad], lr=2e-3)
    losses, pulls = [], []
    for _ in range(8):
        with torch.no_grad():
            record = made.record(teacher(images))
        terms = made(student(images), record, targets)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        pulls.append(next(terms[term].item() for term in ("transfer", "inherit") if term in terms))
    assert all(map(torch.isfinite, torch.tensor(losses + pulls)))
    assert losses[-1] < losses[0]
    assert pulls[-1] < pulls[0], "the transfer itself, not the labels alone"
    first = next(iter(networks[1].parameters()))
    assert first.grad is not None
    assert bool(first.grad.abs().sum() > 0)


def test_a_transformer_is_distilled_and_ships(tmp_path: Path) -> None:
    report = iekd.run(
        **settings(
            teacher="tiny_networks:teacher",
            student="tiny_networks:transformer",
            tap="blocks.1",
            teacher_tap="4",
            image_size=16,
            train_limit=96,
            bench_seconds=0.05,
            factor_epochs=1,
            epochs=4,
            out=str(tmp_path / "run"),
        )
    )
    curves = {curve.name: curve.values for curve in report.curves if curve.stage == "student"}
    assert {"task", "inherit", "explore", "kd"} <= set(curves)
    assert curves["loss"][-1] < curves["loss"][0]
    assert report.student.verification.top1_agreement == 1
