"""The table of methods: it runs, resumes, and its views are what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from paired import difference, render, result_line  # noqa: E402
from resident import PAD, Resident  # noqa: E402


def table(out: Path, *rows: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "cifar10_table.py"), "--data", "digits", "--out", str(out)]
    settings = [
        "--recipe",
        "smoke",
        "--seeds",
        "0",
        "--teacher",
        "cifar_resnet20",
        "--precision",
        "no",
        "--threads",
        "1",
    ]
    return subprocess.run([*command, *settings, "--rows", *rows], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_rows_are_trained_once_and_tabled(tmp_path: Path) -> None:
    varied = "ie-ft@explore_form=cka"
    first = table(tmp_path, "ce", varied, "ie-dml")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("top-1") >= 3
    assert "RESULT best_ie=" in first.stdout
    told = json.loads((tmp_path / "rows" / f"{varied}-0.json").read_text())
    assert all(-1 <= told[f"cka_{part}"] <= 1 for part in ("inheritance", "exploration"))
    assert 0 < told["chance"] <= 1
    for kept in ("rows", "teacher"):  # what travels to another machine
        shutil.copytree(tmp_path / kept, tmp_path / "other" / kept)
    again = table(tmp_path / "other", "ce", varied, "ie-dml", "kd")
    assert [line.split()[0] for line in again.stdout.splitlines() if "seed 0" in line] == ["kd"]
    assert len((tmp_path / "other" / "table.csv").read_text().splitlines()) == 5


def resident() -> Resident:
    random = np.random.default_rng(0)
    return Resident.load(random.integers(0, 255, (20, 8, 8, 3), np.uint8), np.arange(20) % 10, torch.device("cpu"))


def test_a_view_is_a_crop_and_the_same_for_whatever_batch_asks() -> None:
    data = resident()
    whole = data.view(torch.arange(20), 3)
    assert torch.equal(data.view(torch.tensor([7, 2]), 3), whole[[7, 2]])
    assert not torch.equal(data.view(torch.arange(20), 4), whole)
    plain = data.view(torch.arange(20), None)
    expected = (data.images[:, :, PAD:-PAD, PAD:-PAD].float() / 255 - data.mean) / data.std
    assert torch.allclose(plain, expected)


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own() -> None:
    data = resident()
    order = torch.cat([indices for indices, _, _ in data.epoch(0, 5, 1, None)])
    assert sorted(order.tolist()) == list(range(20))
    assert torch.equal(order, torch.cat([indices for indices, _, _ in data.epoch(0, 5, 1, 2)]))
    assert not torch.equal(order, torch.cat([indices for indices, _, _ in data.epoch(1, 5, 1, None)]))
    assert {view for _, _, view in data.epoch(5, 5, 1, 2)} == {1}


def test_differences_are_paired() -> None:
    scores = {
        "ce": {0: 70.0, 1: 72.0, 2: 71.0},
        "kd": {0: 71.0, 1: 73.2, 2: 72.1},
        "ie-ft": {0: 72.0, 1: 74.1, 2: 73.0},
    }
    gain, p = difference(scores, "ie-ft", "ce")
    assert gain == pytest.approx(2.033, abs=1e-3)
    assert p is not None
    assert p < 0.01
    assert "best_ie=ie-ft gain_points=2.03 best_other=kd over_other_points=0.93" in result_line(scores)
    assert "| kd | 72.10 | 1.10 | 3 | +1.10 |" in render(scores, 80.0)
