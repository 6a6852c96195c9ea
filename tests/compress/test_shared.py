"""What the runs of a search share: asked for once, and the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iekd.compress.config_input import make_config
from iekd.compress.shared import SharedAnswers, answers_of, shared_checkpoints, shared_facts, shared_file
from iekd.compress.views import Batch
from iekd.models.taps import Features, TapShape

IMAGES = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SHAPES = (TapShape(3, 4, 4),)


@dataclasses.dataclass
class Run:
    """What :mod:`iekd.compress.shared` asks of a job: ten images, view v of one is the image plus v."""

    shared: Path | None
    folder: Path
    cache_gib: float = 1.0
    classes: int = 3
    precision: str = "no"
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def config(self) -> Any:
        return make_config({"teacher": "t", "student": "s", "cache_gib": self.cache_gib})

    @property
    def accelerator(self) -> Any:
        return dataclasses.make_dataclass("Accelerator", ["mixed_precision"])(self.precision)

    @property
    def data(self) -> Any:
        return dataclasses.make_dataclass("Data", ["train"])(train=IMAGES)

    def view_loader(self, view: int) -> Iterator[Batch]:
        for rows in torch.arange(10).split(4):
            yield batch(rows, view)


def batch(rows: Tensor, view: int) -> Batch:
    return Batch(IMAGES[rows] + view, torch.zeros_like(rows), rows, torch.full_like(rows, view))


class Teacher:
    """Counts the images that it is asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Tensor) -> Features:
        self.asked += len(images)
        return Features(images.mean((2, 3)), (2 * images,))


def test_every_view_of_an_image_is_asked_for_once(tmp_path: Path) -> None:
    teacher, rows = Teacher(), torch.tensor([7, 2, 9])
    first = answers_of(teacher, SHAPES, Run(tmp_path / "shared", tmp_path / "a"), 2)(batch(rows, 1))  # type: ignore[arg-type]
    assert isinstance(first, Features)
    assert torch.allclose(first.taps[0], 2 * (IMAGES[rows] + 1), atol=2e-3, rtol=1e-3)
    assert torch.allclose(first.logits, (IMAGES[rows] + 1).mean((2, 3)), atol=2e-3, rtol=1e-3)
    assert teacher.asked == 10
    other = SharedAnswers(teacher, Run(tmp_path / "shared", tmp_path / "b"))  # type: ignore[arg-type]
    assert torch.equal(other(batch(rows, 1)).taps[0], first.taps[0])
    assert teacher.asked == 10
    assert not torch.equal(other(batch(rows, 0)).taps[0], first.taps[0])
    assert teacher.asked == 20


def test_answers_in_another_precision_are_other_answers(tmp_path: Path) -> None:
    for precision, asked in (("no", 10), ("bf16", 10), ("bf16", 0)):
        teacher, run = Teacher(), Run(tmp_path / "shared", tmp_path / "a", precision=precision)
        SharedAnswers(teacher, run)(batch(torch.arange(3), 0))  # type: ignore[arg-type]
        assert teacher.asked == asked


@pytest.mark.parametrize("changes", [{"shared": None}, {"cache_gib": 1e-9}])
def test_without_a_folder_or_room_the_teacher_is_asked_each_time(tmp_path: Path, changes: dict[str, Any]) -> None:
    teacher, run = Teacher(), dataclasses.replace(Run(tmp_path / "shared", tmp_path), **changes)
    ask = answers_of(teacher, SHAPES, run, 2)  # type: ignore[arg-type]
    for _ in range(2):
        assert torch.equal(ask(batch(torch.arange(3), 0)).taps[0], 2 * IMAGES[:3])
    assert teacher.asked == 6
    assert not (tmp_path / "shared").exists()


def test_facts_and_files_are_made_by_the_first_run(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> dict[str, Any]:
        made.append(path)
        path.write_text("file")
        return {"size": 4}

    for name in ("a", "b"):
        run: Any = Run(tmp_path / "shared", tmp_path / name)
        assert shared_file(run, run.folder / "teacher.onnx", make) == {"size": 4}
        assert (run.folder / "teacher.onnx").read_text() == "file"
        assert shared_facts(run, "accuracy", lambda name=name: {"of": name}) == {"of": "a"}  # type: ignore[misc]
    assert len(made) == 1
    alone: Any = Run(None, tmp_path)
    assert shared_file(alone, tmp_path / "teacher.onnx", make) == {"size": 4}
    assert made[1:] == [tmp_path / "teacher.onnx"]
    assert shared_facts(alone, "accuracy", lambda: {"of": "alone"}) == {"of": "alone"}


def test_checkpoints_are_shared_by_what_they_hang_on(tmp_path: Path) -> None:
    run: Any = Run(tmp_path / "shared", tmp_path / "a")
    same, other = (shared_checkpoints(run, "factors", sizes) for sizes in ([(2, 2)], [(1, 1)]))
    assert same == shared_checkpoints(run, "factors", [(2, 2)])
    assert same.parent == other.parent == tmp_path / "shared" / "checkpoints"
    assert same != other
    assert shared_checkpoints(Run(None, tmp_path), "factors", [(2, 2)]) == tmp_path / "checkpoints" / "factors"  # type: ignore[arg-type]
