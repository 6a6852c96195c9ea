"""Training under simulated quantisation in whole runs: where it happens, what it leaves, and that it resumes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from small import settings

import iekd
from iekd.compress import qat, variants
from iekd.compress.config import RunConfig
from iekd.compress.config_input import make_config
from iekd.compress.learning_rate import SCRATCH
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.precisions import grids_to_train, left_out, precisions_asked, require_quantizers
from iekd.compress.qat import LR_SHARE, qat_epochs
from iekd.compress.quantize import Candidate, QuantizeResult, QuantizeSettings, quantize
from iekd.compress.run_objective import later_config
from iekd.compress.targets import TARGETS
from iekd.compress.variants import QAT_ARTEFACT, make_variants
from iekd.deploy.graph_checks import is_quantized, require_tensorrt_graph
from iekd.deploy.report import read_report
from iekd.deploy.results import Accuracy, Interval
from iekd.errors import EnvironmentMissingError, InputError, VerificationError
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
    assert max(curves["lr"]) <= SCRATCH * LR_SHARE  # the student's own, of so few steps, is higher


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
    shutil.copytree(trained, folder)
    for part in (folder / "variants", folder / "checkpoints" / "qat"):
        shutil.rmtree(part)
    config = make_config(tiny(out=str(folder)))
    given = config, config.teacher, config.student, config.data
    with pytest.raises(KeyboardInterrupt):
        run_stages(*given, Stop(), until="quantize")
    assert not (folder / QAT_ARTEFACT).exists()
    run_stages(*given, Observer(), until="quantize")
    ours, theirs = (load_file(place / QAT_ARTEFACT / "model.safetensors") for place in (folder, trained))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_trained_weights_make_a_graph_that_tensorrt_takes(trained: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    labels = np.arange(16) % 10
    made = quantize(
        trained / QAT_ARTEFACT / "student.onnx",
        tmp_path / "int8.onnx",
        scheme="int8-tensorrt",
        images=images,
        labels=labels,
        held_out=(images, labels),
        settings=QuantizeSettings(calibration_images=16, methods=("minmax",), max_drop=None, threads=1),
        against=trained / "student.onnx",
    )
    require_tensorrt_graph(onnx.load(str(made.file)), ())


@pytest.mark.slow
def test_a_network_that_8_bits_ruin_is_trained_and_then_keeps_the_layer_that_costs_in_float(tmp_path: Path) -> None:
    """Nothing here stands for anything: real files lose, a real training under the teacher follows, a real limit."""
    changes = {"student": "tiny_networks:fragile", "teacher": "tiny_networks:wide", "tap": "auto", "objective": "kd"}
    enough = {"train_limit": 600, "teacher_epochs": 3, "epochs": 8, "lr": 0.02, "image_size": 16}
    described = run(tmp_path / "run", **changes, **enough, qat="auto", qat_epochs=1, max_drop=0.02)
    assert described["qat"]["drop_before"] > 0.1, "8 bits must cost something, or this shows nothing"
    assert described["qat"]["objective"] == "kd"
    assert (tmp_path / "run" / QAT_ARTEFACT / "student.onnx").is_file()
    costs = {layer["layer"]: layer["error"] for layer in described["sensitivity"]}
    assert described["kept_float"] == [max(costs, key=lambda layer: costs[layer])]
    assert described["drop"] <= 0.02
    file = onnx.load(str(tmp_path / "run" / "variants" / described["file"]))
    assert is_quantized(file)


Decision = tuple[dict[str, Any], dict[str, Any] | None, list[str]]


@pytest.fixture
def decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Decision]:
    """The stage, with files that lose what the test says; returns its result, what is recorded, and what was made."""

    def work(*, plain: float, trained: float, kept: float | None = None, there: int = 256, **changes: Any) -> Decision:
        made: list[str] = []

        def fake(source: Path, output: Path, *, settings: QuantizeSettings, **_how: Any) -> QuantizeResult:
            name = "trained" if "qat" in source.parts else "plain"
            made.append(f"{name} within {settings.max_drop}" if settings.enforce else name)
            drop, layers = {"plain": plain, "trained": trained}[name], ()
            assert settings.max_drop is not None, "it decides between files in any case"
            if settings.enforce and drop > settings.max_drop:
                if kept is None:
                    raise VerificationError("no share of layers in float makes up for it.")
                drop, layers = kept, ("stem", "head")
            before, after = (_accuracy(value) for value in (0.9, 0.9 - drop))
            chosen = Candidate("ort-u8s7", "mse", 0.9 - drop, 0.01)
            return QuantizeResult(output, "int8", chosen, (chosen,), before, after, layers, (), None, 0.0)

        monkeypatch.setattr(variants, "quantize", fake)
        one = np.zeros((there, 3, 1, 1)), np.zeros(there, np.int64)
        monkeypatch.setattr(variants, "training_images", lambda _job: (one, one))
        job = SimpleNamespace(
            config=make_config(tiny(**changes)),
            folder=tmp_path,
            observer=Observer(),
            accelerator=SimpleNamespace(is_main_process=True),
        )
        (tmp_path / "variants").mkdir(exist_ok=True)
        result = make_variants(
            job, lambda do: do(), lambda _scheme: {"objective": "ie-ft+kd", "epochs": 3, "curves": {"task": [1.0]}}
        )
        file = tmp_path / "variants" / "student-int8.json"
        return result, json.loads(file.read_text()) if file.exists() else None, made

    return work


def _accuracy(value: float) -> Accuracy:
    return Accuracy(top1=Interval(value=value, low=value, high=value), correct=0, total=100, per_class=[])


def test_auto_trains_where_the_limit_is_missed_alone(decide: Callable[..., Decision]) -> None:
    result, described, made = decide(plain=0.009, trained=0.0, qat="auto")
    assert made == ["plain"]
    assert described["qat"] is None
    assert result["remarks"] == []
    result, described, made = decide(plain=0.03, trained=0.0, qat="auto")
    assert made == ["plain", "trained"]
    assert described["qat"]["ships"]
    assert described["qat"]["drop_before"] == pytest.approx(0.03)
    assert described["drop"] == pytest.approx(0.0)
    assert "trained with ie-ft+kd" in result["note"]
    assert result["epochs"] == 3
    assert result["curves"] == {"task": [1.0]}
    assert decide(plain=0.03, trained=0.0, qat="auto", max_drop=0.05)[2] == ["plain"]
    assert decide(plain=0.03, trained=0.0, qat="never")[2] == ["plain"]
    assert decide(plain=0.0, trained=0.0, qat="always")[2] == ["plain", "trained"]


def test_what_is_calibrated_on_few_images_says_so(decide: Callable[..., Decision]) -> None:
    few = decide(plain=0.0, trained=0.0, qat="never", there=30)[0]["remarks"]
    assert few == ["The other precisions than float32 were calibrated on 30 images, half of what there is."]
    assert decide(plain=0.0, trained=0.0, qat="never", there=256)[0]["remarks"] == []


def test_a_trained_file_that_loses_more_does_not_ship(decide: Callable[..., Decision]) -> None:
    result, described, made = decide(plain=0.03, trained=0.05, qat="auto")
    assert made == ["plain", "trained", "plain"]
    assert not described["qat"]["ships"]
    assert described["drop"] == pytest.approx(0.03)
    assert "what ships is not trained for it" in result["remarks"][0]
    assert "trained with" not in result["note"]


def test_layers_stay_in_float_where_training_did_not_suffice(decide: Callable[..., Decision]) -> None:
    wanted = {"qat": "auto", "precision": "best"}
    result, described, made = decide(plain=0.05, trained=0.03, kept=0.008, **wanted)
    assert made == ["plain", "trained", "trained within 0.01"]
    assert described["drop"] == pytest.approx(0.008)
    assert result["remarks"][1:] == ["int8: 2 layers stay in float: stem, head."]
    assert decide(plain=0.05, trained=0.07, kept=0.008, **wanted)[2][-1] == "plain within 0.01"
    assert decide(plain=0.05, trained=0.005, **wanted)[2] == ["plain", "trained"]


def test_a_precision_by_name_that_misses_a_limit_not_given_says_so(decide: Callable[..., Decision]) -> None:
    result, _, made = decide(plain=0.03, trained=0.0, qat="never")
    assert made == ["plain"]
    (remark,) = result["remarks"]
    assert "int8 loses 3.00%" in remark
    assert "more than --max-drop 0.01" in remark
    assert "--max-drop if given mend it" in remark
    assert decide(plain=0.009, trained=0.0, qat="never")[0]["remarks"] == []


def test_a_limit_that_was_given_holds_for_a_precision_by_name_too(decide: Callable[..., Decision]) -> None:
    kept = {"kept": 0.004, "max_drop": 0.005}
    result, described, made = decide(plain=0.03, trained=0.0, qat="never", **kept)
    assert made == ["plain within 0.005"]
    assert described["drop"] == pytest.approx(0.004)
    assert result["remarks"] == ["int8: 2 layers stay in float: stem, head."]
    assert decide(plain=0.03, trained=0.001, qat="auto", **kept)[2] == ["plain", "trained"]
    assert decide(plain=0.03, trained=0.02, qat="auto", **kept)[2] == ["plain", "trained", "trained within 0.005"]
    assert decide(plain=0.03, trained=0.0, qat="never", max_drop=0.05)[0]["remarks"] == []


def test_a_given_limit_that_no_layers_in_float_meet_is_told_and_the_file_by_name_ships(
    decide: Callable[..., Decision],
) -> None:
    result, described, made = decide(plain=0.03, trained=0.0, qat="never", max_drop=0.005)
    assert made == ["plain within 0.005", "plain"]
    assert described["drop"] == pytest.approx(0.03)
    told, remark = result["remarks"]
    assert told == "int8: no share of layers in float makes up for it."
    assert "more than --max-drop 0.005" in remark
    assert "--precision best would leave it out" in remark


def test_what_was_tried_before_in_another_format_does_not_stay(decide: Callable[..., Decision], tmp_path: Path) -> None:
    (tmp_path / "variants").mkdir()
    stale = [tmp_path / "variants" / f"student-int8{suffix}" for suffix in (".xml", ".bin", ".onnx")]
    for file in stale:
        file.write_text("of an earlier trial")
    decide(plain=0.0, trained=0.0, qat="never")
    assert not any(file.exists() for file in stale)


def test_what_misses_even_then_does_not_ship_and_leaves_nothing(decide: Callable[..., Decision]) -> None:
    result, described, _ = decide(plain=0.05, trained=0.03, qat="auto", precision="best")
    assert result["refused"] == ["int8: no share of layers in float makes up for it."]
    assert "after 3 epochs of ie-ft+kd" in result["remarks"][0]
    assert described is None


def test_without_nncf_auto_says_so_and_always_refuses(
    decide: Callable[..., Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else real(name))
    with pytest.raises(EnvironmentMissingError, match="--qat needs NNCF"):
        require_quantizers(make_config(tiny()))
    assert grids_to_train(make_config(tiny(qat="auto"))) == []
    result, _, made = decide(plain=0.03, trained=0.0, qat="auto")
    assert made == ["plain"]
    assert "NNCF is not installed" in result["remarks"][0]


def test_best_leaves_out_what_cannot_be_made_and_a_precision_by_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(target: str, precision: str, *gone: str) -> RunConfig:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
        return make_config(tiny(target=target, precision=precision, qat="auto"))

    real = importlib.util.find_spec
    config = ask("tensorrt", "best")
    assert (precisions_asked(config), left_out(config)) == (tuple(TARGETS["tensorrt"].schemes), ())
    config = ask("tensorrt", "best", "modelopt")
    require_quantizers(config)
    assert precisions_asked(config) == tuple(name for name in TARGETS["tensorrt"].schemes if name != "fp8")
    (line,) = left_out(config)
    assert line.startswith(
        "fp8 for tensorrt needs modelopt, which is not installed; it is left out: pip install nvidia"
    )
    with pytest.raises(EnvironmentMissingError, match="fp8 for tensorrt needs modelopt"):
        require_quantizers(ask("tensorrt", "fp8", "modelopt"))
    with pytest.raises(EnvironmentMissingError, match=r"int8 for openvino needs nncf.*\[quantize\]"):
        require_quantizers(ask("openvino", "best", "nncf"))
    with pytest.raises(EnvironmentMissingError, match="pip install onnxconverter-common"):
        require_quantizers(ask("jetson-orin", "fp16", "onnxconverter_common"))


def test_a_rare_class_has_its_part_in_the_first_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 990 images of one class and 10 of another, with an image's brightness its class."""
    pairs = [(np.full((3, 2, 2), label, np.float32), label) for label in [0] * 990 + [1] * 10]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(qat, "Simulated", lambda _tapped, images, _grid: seen.append(images))
    monkeypatch.setattr(
        qat,
        "distill_network",
        lambda *given: (SimpleNamespace(figures={}), given[-1](None)),  # what trains asks for the simulation
    )

    class Source(list[Any]):
        targets = np.array([label for _, label in pairs])

    job = SimpleNamespace(
        data=SimpleNamespace(train=Source(pairs)),
        config=SimpleNamespace(seed=0),
        preprocessing=lambda image: image,
        device=torch.device("cpu"),
    )
    network = torch.nn.Identity()
    qat.train_network_quantized(network, network, None, job, "int8-tensorrt")  # type: ignore[arg-type]  # stand-ins
    (images,) = seen
    assert images.shape == (256, 3, 2, 2)
    assert images.amax((1, 2, 3)).sum() == 10


def test_epochs_and_objective_where_the_settings_leave_them_open() -> None:
    assert qat_epochs(make_config(tiny(qat_epochs=None)), 16) == 4
    assert qat_epochs(make_config(tiny(qat_epochs=None)), 2) == 1
    assert qat_epochs(make_config(tiny(qat_epochs=7)), 16) == 7
    assert later_config(make_config(tiny(objective="dml"))).objective == "kd"
    assert later_config(make_config(tiny())).objective == "ie-ft+kd"


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
