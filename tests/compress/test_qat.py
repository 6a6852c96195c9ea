"""Training under simulated quantisation in whole runs: where it happens, what it leaves, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from small import settings

import iekd
from iekd.compress import variants
from iekd.compress.config import make_config
from iekd.compress.observer import Observer
from iekd.compress.qat import qat_epochs, qat_objective
from iekd.compress.variants import QAT_ARTEFACT, grids_to_train, require_quantizers
from iekd.deploy.graph_checks import is_quantized, require_tensorrt_graph
from iekd.deploy.report import read_report
from iekd.errors import EnvironmentMissingError, InputError
from iekd.models.checkpoint import load_artefact

pytest.importorskip("nncf")

TINY = {
    "teacher": "tiny_networks:teacher",
    "student": "tiny_networks:student",
    "tap": "4",
    "precision": "int8",
    "qat": "always",
    "qat_epochs": 2,
    "val_limit": 20,
}


def tiny(**changes: Any) -> dict[str, Any]:
    return settings(**{**TINY, **changes})


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run; what it says of its int8 file."""
    iekd.run(**tiny(**changes, out=str(folder)))
    described: dict[str, Any] = json.loads((folder / "variants" / "student-int8.json").read_text())
    return described


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qat") / "run"
    run(folder)
    return folder


def test_weights_are_trained_and_statistics_are_not(trained: Path) -> None:
    before, after = (load_file(trained / name / "model.safetensors") for name in ("student", QAT_ARTEFACT))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name.endswith(".weight")} <= changed
    assert not any("running" in name or "batches" in name for name in changed)


def test_the_runs_own_objective_trains_and_its_terms_are_reported(trained: Path) -> None:
    report = read_report(trained / "report.json")
    curves = {curve.name: curve.values for curve in report.curves if curve.stage == "student under int8"}
    assert {"task", "inherit", "explore", "kd", "accuracy"} <= curves.keys()
    assert all(len(values) == 2 for values in curves.values())
    assert any("ie-ft+kd under simulated quantisation" in note for note in report.notes)
    (stage,) = (stage for stage in report.stages if stage.name == "quantize")
    assert stage.epochs == 2


def test_the_artefact_reloads_and_its_file_is_quantised(trained: Path) -> None:
    artefact = load_artefact(trained / QAT_ARTEFACT)
    assert artefact.facts["qat"] == {"scheme": "int8-x86-onnxruntime", "epochs": 2}
    described = json.loads((trained / "variants" / "student-int8.json").read_text())
    assert {"drop_before", "drop_after", "ships", "objective", "epochs"} <= described["qat"].keys()
    assert described["qat"]["ships"] == (described["qat"]["drop_after"] <= described["qat"]["drop_before"])
    assert is_quantized(onnx.load(str(trained / "variants" / "student-int8.onnx")))


def test_a_stopped_training_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    class Stop(Observer):
        def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
            if name == "qat" and epoch == 0:
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        iekd.run(**tiny(out=str(folder)), observer=Stop())
    assert not (folder / QAT_ARTEFACT).exists()
    run(folder)
    ours, theirs = (load_file(place / QAT_ARTEFACT / "model.safetensors") for place in (folder, trained))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_tensorrts_graph_is_checked_after_training_too(tmp_path: Path) -> None:
    described = run(tmp_path / "run", target="jetson-orin", qat_epochs=1)
    assert described["scheme"] == "int8-tensorrt"
    require_tensorrt_graph(onnx.load(str(tmp_path / "run" / "variants" / "student-int8.onnx")), ())


def test_auto_trains_where_the_limit_is_missed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run(tmp_path / "kept", qat="auto", max_drop=1.0)
    assert kept["qat"] is None
    assert not (tmp_path / "kept" / QAT_ARTEFACT).exists()

    real = variants.quantize

    def lossy(source: Path, output: Path, **how: Any) -> Any:
        """Three points worse than it is, unless trained."""
        made = real(source, output, **how)
        if "qat" in source.parts:
            return made
        top1 = made.after.top1.model_copy(update={"value": made.before.top1.value - 0.03})
        return type(made)(**{**vars(made), "after": made.after.model_copy(update={"top1": top1})})

    monkeypatch.setattr(variants, "quantize", lossy)
    missed = run(tmp_path / "missed", qat="auto", qat_epochs=1)
    assert missed["qat"]["drop_before"] == pytest.approx(0.03)
    assert missed["qat"]["epochs"] == 1
    assert run(tmp_path / "never", qat="never")["qat"] is None


def test_a_trained_file_that_loses_more_does_not_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = variants.quantize

    def spoilt(source: Path, output: Path, **how: Any) -> Any:
        made = real(source, output, **how)
        if "qat" not in source.parts:
            return made
        top1 = made.after.top1.model_copy(update={"value": made.before.top1.value - 0.9})
        return type(made)(**{**vars(made), "after": made.after.model_copy(update={"top1": top1})})

    monkeypatch.setattr(variants, "quantize", spoilt)
    described = run(tmp_path / "run", qat_epochs=1)
    assert described["qat"]["ships"] is False
    assert described["drop"] < 0.5
    notes = read_report(tmp_path / "run" / "report.json").notes
    assert any("what ships is not trained for it" in note for note in notes)


def test_without_nncf_auto_says_so_and_always_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = variants.importlib.util.find_spec
    monkeypatch.setattr(variants.importlib.util, "find_spec", lambda name: None if name == "nncf" else real(name))
    with pytest.raises(EnvironmentMissingError, match="--qat needs NNCF"):
        require_quantizers(make_config(tiny()))
    assert grids_to_train(make_config(tiny(qat="auto"))) == []
    run(tmp_path / "run", qat="auto", max_drop=0.0, val_limit=20)
    report = read_report(tmp_path / "run" / "report.json")
    described = json.loads((tmp_path / "run" / "variants" / "student-int8.json").read_text())
    assert (described["drop"] > 0) == any("NNCF is not installed" in note for note in report.notes)


def test_epochs_and_objective_where_the_settings_leave_them_open() -> None:
    assert qat_epochs(make_config(tiny(qat_epochs=None)), 16) == 4
    assert qat_epochs(make_config(tiny(qat_epochs=None)), 2) == 1
    assert qat_epochs(make_config(tiny(qat_epochs=7)), 16) == 7
    assert qat_objective(make_config(tiny(objective="dml"))) == "kd"
    assert qat_objective(make_config(tiny())) == "ie-ft+kd"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qat": "often"}, "unknown --qat 'often'"),
        ({"qat_epochs": 0}, "--qat-epochs 0"),
        ({"max_drop": -0.1}, "--max-drop -0.1"),
        ({"precision": "fp32"}, "--qat always trains for int8"),
        ({"precision": "fp16", "target": "jetson-orin"}, "--qat always trains for int8"),
    ],
)
def test_bad_values_are_one_clear_line_before_training(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as refused:
        iekd.run(**tiny(**changes, out=str(tmp_path / "run")))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
