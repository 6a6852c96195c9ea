"""The table of methods: it runs, resumes, and its views are what it says."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import run_script
from small import environment_of

from iekd.compress.clipping import Group
from iekd.compress.observer import Observer
from iekd.compress.teacher import Supervised
from iekd.compress.trainer import FitSettings, fit
from iekd.models.checkpoint import Artefact, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import build, resolve

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from cohort import forget, train_side_by_side  # noqa: E402
from lane import Lane  # noqa: E402
from resident import PAD, Resident  # noqa: E402
from table_bench import RECIPES, Bench  # noqa: E402
from table_cohort import score_unfinished  # noqa: E402
from table_teacher import train_teacher  # noqa: E402


def table(out: Path, *rows: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    settings = [
        *("--data", "digits", "--out", str(out)),
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
    return run_script(BENCHMARKS / "cifar10_table.py", *settings, *more, "--rows", *rows, environment=environment_of())


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
    assert (told["made_under"]["precision"], told["made_under"]["views"]) == ("no", 1)
    for kept in ("rows", "teacher"):  # what travels to another machine
        shutil.copytree(tmp_path / kept, tmp_path / "other" / kept)
    again = table(tmp_path / "other", "ce", varied, "ie-dml", "kd")
    assert [line.split()[0] for line in again.stdout.splitlines() if "seed 0" in line] == ["kd"]
    assert len((tmp_path / "other" / "table.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_rows_train_side_by_side(tmp_path: Path) -> None:
    rows = ("ce", "dml", "ie-ft@split=relevance", "dkd", "switokd")
    first = table(tmp_path, *rows, more=("--lanes", "2"))
    assert first.returncode == 0, first.stderr
    assert sorted(path.stem for path in (tmp_path / "rows").glob("*.json")) == sorted(f"{row}-0" for row in rows)
    told = json.loads((tmp_path / "rows" / "ie-ft@split=relevance-0.json").read_text())
    assert told["pull_inherit"] > 0
    again = table(tmp_path, *rows, more=("--lanes", "2"))
    assert "top-1" not in again.stdout.split("|")[0]
    assert table(tmp_path, *rows, more=("--likeness",)).returncode == 0
    after = json.loads((tmp_path / "rows" / "ie-ft@split=relevance-0.json").read_text())
    assert {**told, **after} == after
    assert all(-1 <= after[f"cka_{part}"] <= 1 for part in ("inheritance", "exploration"))


def test_a_lane_takes_the_steps_of_an_ordinary_training(tmp_path: Path) -> None:
    data, settings = resident(), FitSettings(epochs=3, lr=0.1, weight_decay=5e-4, optimizer="sgd", seed=5)
    task, other = small_network(), small_network()
    lane = Lane("lane", task, 5, settings, lambda seen: (seen.images, seen.targets))
    losses: list[float] = []
    train_side_by_side(
        [lane], data, None, 6, contextlib.nullcontext, told=lambda _, found: losses.append(found["lane"])
    )
    history = fit(
        other,
        lambda epoch: data.epoch(epoch, 6, 5, None),  # type: ignore[arg-type, return-value]
        settings,
        name="fit",
        folder=tmp_path,
        accelerator=Accelerator(cpu=True),
        observer=Observer(),
        inputs=lambda batch: (data.view(batch[0], batch[2]), batch[1]),
    )
    assert losses == pytest.approx(history.figures["loss"], rel=1e-5)
    for one, two in zip(task.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


class Pair(torch.nn.Module):
    """Two networks, the second's loss steep."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = small_network(), small_network()

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.a(images, targets)["task"], "b": 100 * self.b(images, targets)["task"]}

    def apart(self) -> list[Group]:
        return [list(self.a.parameters()), list(self.b.parameters())]


def test_a_lane_clips_as_an_ordinary_training_does(tmp_path: Path) -> None:
    data, settings = resident(), FitSettings(epochs=2, lr=0.01, optimizer="sgd", seed=5)
    task, other, joint = Pair(), Pair(), Pair()

    def lane(own: Pair, apart: list[Group]) -> Lane:
        return Lane("lane", own, 5, settings, lambda seen: (seen.images, seen.targets), apart)

    share = train_side_by_side([lane(task, task.apart())], data, None, 6, contextlib.nullcontext)
    train_side_by_side([lane(joint, [])], data, None, 6, contextlib.nullcontext)
    history = fit(
        other,
        lambda epoch: data.epoch(epoch, 6, 5, None),  # type: ignore[arg-type, return-value]
        settings,
        name="fit",
        folder=tmp_path,
        accelerator=Accelerator(cpu=True),
        observer=Observer(),
        inputs=lambda batch: (data.view(batch[0], batch[2]), batch[1]),
        apart=other.apart(),
    )
    assert share["lane"] == pytest.approx(sum(history.figures["clipped"]) / 2)
    assert share["lane"] > 0
    for one, two in zip(task.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert not all(
        torch.allclose(one, two, atol=1e-4) for one, two in zip(task.a.parameters(), joint.a.parameters(), strict=True)
    )


def test_a_lane_whose_loss_overflows_is_named() -> None:
    task = Supervised(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)))
    settings = FitSettings(epochs=2, lr=1e30, optimizer="sgd", clip_norm=None)
    lane = Lane("too fast", task, 0, settings, lambda seen: (seen.images, seen.targets))
    with pytest.raises(RuntimeError, match="too fast: the loss is not finite"):
        train_side_by_side([lane], resident(), None, 5, contextlib.nullcontext)


def lane_of(task: Supervised, epochs: int, lr: float = 0.1) -> Lane:
    settings = FitSettings(epochs=epochs, lr=lr, optimizer="sgd", seed=5)
    return Lane("lane", task, 5, settings, lambda seen: (seen.images, seen.targets))


def small_network() -> Supervised:
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    return Supervised(first.append(torch.nn.Linear(4 * 6 * 6, 10)))


def side_by_side(lane: Lane, **more: Any) -> None:
    train_side_by_side([lane], resident(), None, 6, contextlib.nullcontext, **more)


def test_lanes_that_were_cut_go_on_from_the_last_epoch_they_kept(tmp_path: Path) -> None:
    whole, cut, rest = small_network(), small_network(), small_network()
    side_by_side(lane_of(whole, 4))

    def stop(epoch: int, losses: dict[str, float]) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(lane_of(cut, 4), told=stop, kept=tmp_path, keep_every=0)
    epochs: list[int] = []
    side_by_side(lane_of(rest, 4), told=lambda epoch, _: epochs.append(epoch), kept=tmp_path)
    assert epochs == [2, 3]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    other = lane_of(small_network(), 4, lr=0.2)
    with pytest.raises(RuntimeError, match=r"lane.safetensors: this lane has other settings now"):
        side_by_side(other, kept=tmp_path)
    forget(tmp_path, "lane")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_students_of_lanes_that_were_cut_are_scored(tmp_path: Path) -> None:
    arguments = argparse.Namespace(student="cifar_resnet20", compile=False)
    data, accelerator = resident(), Accelerator(cpu=True)
    bench = Bench(arguments, dataclasses.replace(RECIPES["smoke"], batch=10), accelerator, data, data, data, tmp_path)
    network = bench.tapped("cifar_resnet20", 3, "student").network
    lanes = [lane_of(Supervised(network), 4)]

    def stop(epoch: int, losses: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(
            lanes, data, None, 10, contextlib.nullcontext, told=stop, kept=tmp_path / "checkpoints", keep_every=0
        )
    assert score_unfinished(bench) == {"lane": (1, bench.top1(network))}


def test_a_trained_teacher_can_be_given(tmp_path: Path) -> None:
    given = tmp_path / "RUN" / "teacher"
    network = build(resolve("cifar_resnet20"), 10, 8)
    classes = tuple(map(str, range(10)))
    save_artefact(given, Artefact(network, resolve("cifar_resnet20"), classes, Preprocessing(size=8), {}))
    arguments = argparse.Namespace(teacher="cifar_resnet20", teacher_from=given, compile=False)
    data, accelerator = resident(), Accelerator(cpu=True)
    teacher = train_teacher(Bench(arguments, RECIPES["smoke"], accelerator, data, data, data, tmp_path)).network
    halves = {name: value.half() for name, value in network.state_dict().items()}
    assert all(torch.equal(value.half(), halves[name]) for name, value in teacher.state_dict().items())
    told = json.loads((tmp_path / "teacher" / "teacher.json").read_text())
    assert (told["given"], "epochs" in told) == (str(given), False)


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


def test_an_enlarged_view_is_the_same_crop() -> None:
    """Bilinear to twice the size, then averaged back: each pixel with an eighth of either neighbour."""
    small = resident()
    large, indices = dataclasses.replace(small, shown=16), torch.arange(4)
    found = torch.nn.functional.avg_pool2d(large.view(indices, 3), 2)
    kernel = torch.tensor([0.125, 0.75, 0.125])
    kernel = torch.outer(kernel, kernel).expand(3, 1, 3, 3)
    expected = torch.nn.functional.conv2d(small.view(indices, 3), kernel, groups=3)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected)
    assert large.size == 16
    assert small.size == 8


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own() -> None:
    data = resident()
    order = torch.cat([indices for indices, _, _ in data.epoch(0, 5, 1, None)])
    assert sorted(order.tolist()) == list(range(20))
    assert torch.equal(order, torch.cat([indices for indices, _, _ in data.epoch(0, 5, 1, 2)]))
    assert not torch.equal(order, torch.cat([indices for indices, _, _ in data.epoch(1, 5, 1, None)]))
    assert {view for _, _, view in data.epoch(5, 5, 1, 2)} == {1}
