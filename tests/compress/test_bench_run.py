"""``bench RUN`` measures what the run ships, on the run's own images and runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iekd.compress import bench
from iekd.compress.bench import bench_files
from iekd.compress.config import RunConfig
from iekd.deploy.report import read_report
from iekd.errors import InputError

HOW: dict[str, Any] = {"val_fraction": None, "batch": 1, "seconds": 0.05, "threads": 1}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that ships another file than ``student.onnx``, for another runtime than the default."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "variants").mkdir(exist_ok=True)
    (folder / "student.onnx").rename(folder / "variants" / "student-int8.onnx")
    report = json.loads((folder / "report.json").read_text())
    report["student"]["file"] = "variants/student-int8.onnx"
    report["config"]["target"] = "openvino"
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def measured(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bench.json").read_text())["models"]
    return found


def test_it_measures_what_ships_as_the_run_did(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bench_files([run], data=None, backend=None, output=tmp_path / "out", **HOW)
    found, report = measured(tmp_path / "out"), read_report(run / "report.json")
    assert set(found) == {"teacher", "student-int8"}
    assert all(model["backend"]["backend"].startswith("OpenVINO") for model in found.values())
    assert found["teacher"]["accuracy"]["total"] == report.dataset.val_images
    assert found["teacher"]["accuracy"]["top1"]["value"] == pytest.approx(report.teacher.accuracy.top1.value, abs=0.03)


def test_what_is_given_counts_instead(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float | None]] = []
    load = bench.load_data
    monkeypatch.setattr(
        bench, "load_data", lambda data, val_fraction, **_: asked.append((data, val_fraction)) or load("digits")
    )
    bench_files([run], data="digits", backend="onnxruntime", output=tmp_path / "out", **HOW)
    assert asked == [("digits", None)]
    assert all(model["backend"]["backend"].startswith("ONNX Runtime") for model in measured(tmp_path / "out").values())


@pytest.mark.parametrize("skip", [False, True])
def test_leaving_out_bad_images_keeps_the_runs_share_and_limits(
    skip: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []
    monkeypatch.setattr(bench, "reopen_data", lambda config, _: asked.append(config) or bench.load_data("digits"))
    bench_files([run], data=None, backend="onnxruntime", skip_bad_images=skip, output=tmp_path / "out", **HOW)
    kept = read_report(run / "report.json").config
    (config,) = asked
    assert config.skip_bad_images == skip
    assert (config.val_fraction, config.val_limit) == (kept["val_fraction"], kept["val_limit"])


def test_a_folder_without_a_report_is_its_two_files(finished_run: Path, tmp_path: Path) -> None:
    for name in ("teacher.onnx", "student.onnx"):
        shutil.copy(finished_run / name, tmp_path / name)
    bench_files([tmp_path], data="digits", backend="onnxruntime", output=tmp_path / "out", **HOW)
    assert set(measured(tmp_path / "out")) == {"teacher", "student"}
    with pytest.raises(InputError, match=r"holds no teacher\.onnx"):
        bench_files([tmp_path / "out"], data="digits", backend=None, output=tmp_path / "again", **HOW)
