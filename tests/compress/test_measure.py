"""Which of the measured files ships, and what the benchmark stage need not ask twice."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from iekd.compress.choice import choose
from iekd.compress.config_input import make_config
from iekd.compress.data import load_data
from iekd.compress.diagnostics.finished_run import shipped
from iekd.compress.make_report import make_report
from iekd.compress.measure import _judge
from iekd.compress.measured_files import File
from iekd.deploy.report import read_report

FILES = [
    File("teacher", "teacher.onnx", "fp32"),
    File("student", "student.onnx", "fp32"),
    *(File(f"student-{name}", f"variants/student-{name}.onnx", name) for name in ("bf16", "int8")),
]


def ships(retained: dict[str, float], medians: dict[str, float], **settings: Any) -> str:
    models = {name: figures(retained[name], medians[name]) for name in retained}
    return choose(make_config({"teacher": "t", "student": "s", "precision": "best", **settings}), models)


def figures(retained: float, median: float) -> dict[str, Any]:
    return {"retained": {"value": retained}, "latency": {"median": {"value": median}}}


@pytest.mark.parametrize(
    ("bf16", "int8", "expected"),
    [
        ((0.992, 1.2), (0.995, 0.9), "student-int8"),  # the fastest of those that keep enough
        ((0.992, 1.2), (0.980, 0.9), "student-bf16"),
        ((0.970, 0.8), (0.989, 1.9), "student"),  # none keeps enough, and lucky rounding is not worth twice the time
        ((0.970, 0.8), (0.986, 0.9), "student-int8"),
    ],
)
def test_the_fastest_that_keeps_enough_ships_else_the_most_accurate_that_is_worth_its_time(
    bf16: tuple[float, float], int8: tuple[float, float], expected: str
) -> None:
    retained = {"teacher": 1.0, "student": 0.985, "student-bf16": bf16[0], "student-int8": int8[0]}
    medians = {"teacher": 20.0, "student": 1.0, "student-bf16": bf16[1], "student-int8": int8[1]}
    assert ships(retained, medians, min_retained=0.99) == expected


def test_a_precision_that_was_asked_for_by_name_ships() -> None:
    retained = {"teacher": 1.0, "student": 1.0, "student-bf16": 1.0, "student-int8": 0.5}
    medians = {"teacher": 20.0, "student": 1.0, "student-bf16": 1.0, "student-int8": 9.0}
    assert ships(retained, medians, precision="int8") == "student-int8"


def test_a_limit_that_changed_chooses_anew_among_the_figures_of_then(finished_run: Path, tmp_path: Path) -> None:
    """A run with figures put in: float32 keeps 99.5 % and int8, which is faster, 98 %."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    file = folder / "benchmark" / "benchmark.json"
    measured = json.loads(file.read_text())
    models = measured["models"]
    models["student-int8"] = {**copy.deepcopy(models["student"]), "precision": "int8"}
    for name, retained, median in (("student", 0.995, 2.0), ("student-int8", 0.98, 1.0)):
        models[name]["retained"]["value"] = retained
        models[name]["latency"]["median"]["value"] = median
    file.write_text(json.dumps({**measured, "ships": "student-int8"}))  # as earlier versions wrote
    state = json.loads((folder / "run.json").read_text())
    for limit, precision in ((0.97, "int8"), (0.99, "fp32"), (0.97, "int8")):
        config = make_config({**state["config"], "precision": "best", "min_retained": limit})
        job: Any = SimpleNamespace(
            config=config,
            folder=folder,
            data=load_data("digits"),
            preprocessing=SimpleNamespace(size=32),
        )
        report = make_report(job, state["stages"], (), "again")
        assert report.verdict.kept
        assert report.student.precision == precision
        assert {model.precision for model in (report.student, *report.variants)} == {"fp32", "int8"}
        assert read_report(folder / "report.json") == report
        assert shipped(folder, config).precision == precision
    assert "ships" not in state["stages"]["benchmark"]["result"]


class Session:
    """Says 0 of dark images and 1 of bright ones; counts the images."""

    batch_range = (1, None)

    def __init__(self) -> None:
        self.asked = 0

    def run(self, images: np.ndarray) -> np.ndarray:
        self.asked += len(images)
        bright = images.mean((1, 2, 3)) > 0.5
        return np.stack([~bright, bright], 1).astype(np.float32)


@pytest.mark.parametrize(("shared", "asked"), [("shared", 5 + 5 + 5), (None, 4 * 5)])
def test_the_teacher_s_file_is_judged_once_in_a_search(tmp_path: Path, shared: str | None, asked: int) -> None:
    images = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)
    targets = np.array([0, 1, 0, 1, 1])
    session: Any = Session()
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        for file in FILES[:2]:
            (folder / file.path).write_text(file.name)
        job: Any = SimpleNamespace(
            config=make_config({"teacher": "t", "student": "s"}),
            folder=folder,
            shared=tmp_path / shared if shared else None,
            data=SimpleNamespace(classes=("dark", "bright")),
            val_arrays=lambda: iter([(images[:3], targets[:3]), (images[3:], targets[3:])]),
        )
        found += [_judge(job, file, session) for file in FILES[:2]]
    assert session.asked == asked
    for accuracy, correct in found:
        assert accuracy == found[0][0]
        assert (accuracy.correct, accuracy.total) == (4, 5)
        assert correct.tolist() == [True, False, True, True, True]
