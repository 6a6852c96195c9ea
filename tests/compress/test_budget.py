"""Pruning and other precisions in a whole run: each stage's file is what the next one takes, and the report says it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_networks
import torch
from report_samples import sample_report
from safetensors.torch import load_file
from small import settings
from torch import nn

import iekd
from iekd.compress import pruned_student
from iekd.compress.config_input import make_config
from iekd.compress.data import load_data
from iekd.compress.diagnose import diagnose
from iekd.compress.diagnostics.finished_run import open_run
from iekd.compress.make_report import kept_for_report, losses, slower_than_float
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.plan import make_plan
from iekd.compress.prune import Macs, Ratio
from iekd.compress.pruning.share import goal_of_share
from iekd.compress.rehearsal import rehearse
from iekd.compress.targets import TARGETS
from iekd.deploy.report import read_report
from iekd.deploy.results import Interval
from iekd.errors import EnvironmentMissingError, IekdError, InputError
from iekd.files import sha256_of
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, count_macs
from iekd.models.taps import Tapped

WANTED = {
    "student": "test_efficientnet",
    "prune": 0.4,
    "prune_steps": 2,
    "prune_epochs": 1,
    "precision": "best",
    "teacher_epochs": 1,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that pruned twice and quantised."""
    folder = tmp_path_factory.mktemp("squeezed") / "run"
    iekd.run(**settings(**WANTED, out=str(folder)))
    return folder


def test_the_pruned_student_is_what_is_exported(squeezed: Path) -> None:
    whole, pruned = (load_artefact(squeezed / name) for name in ("student", "pruned"))
    before, after = (count_macs(artefact.network, 32) for artefact in (whole, pruned))
    assert after <= 0.62 * before
    assert len(pruned.facts["pruning"]) == 2
    report = read_report(squeezed / "report.json")
    assert report.student.macs == after
    names = [stage.name for stage in report.stages]
    assert names == ["plan", "teacher", "distill", "prune", "export", "quantize", "benchmark"]
    assert {curve.stage for curve in report.curves} >= {"pruned student"}


def test_what_pruning_gained_is_measured_and_told(squeezed: Path) -> None:
    report = read_report(squeezed / "report.json")
    (note,) = (note for note in report.notes if note.startswith("Pruning"))
    found = json.loads((squeezed / "benchmark" / "benchmark.json").read_text())
    gain, after = found["unpruned"], found["models"]["student"]["latency"]["median"]
    assert f"latency {gain['before']['value']:.3g} -> {after['value']:.3g} ms" in note
    assert ("not faster" in note) == (gain["speedup"]["low"] <= 1)
    traces = (np.load(squeezed / "benchmark" / f"latency-{name}.npz") for name in ("unpruned", "student"))
    before, pruned = (float(np.median(trace["milliseconds"])) for trace in traces)
    assert gain["before"]["value"] == pytest.approx(before)
    assert gain["speedup"]["value"] == pytest.approx(before / pruned)
    assert "unpruned.onnx" not in {model.file for model in (report.student, report.teacher, *report.variants)}


def test_every_precision_is_measured_and_the_fastest_good_one_ships(squeezed: Path) -> None:
    report = read_report(squeezed / "report.json")
    students = [report.student, *report.variants]
    assert {model.precision for model in students} == {"fp32", "int8"}
    kept = [m for m in students if m.accuracy.top1.value >= 0.01 * report.teacher.accuracy.top1.value]
    assert report.student.latency.median.value == min(model.latency.median.value for model in kept)
    for model in students:
        file = squeezed / model.file
        assert file.stat().st_size == model.size_bytes
        assert (np.load(squeezed / model.latency.trace)["milliseconds"]).size == model.latency.iterations
    quantised = next(model for model in students if model.precision == "int8")
    graph = onnx.load(str(squeezed / quantised.file)).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert "The student in each precision" in (squeezed / "report.html").read_text(encoding="utf-8")


def test_a_run_stopped_while_recovering_ends_with_the_same_weights(squeezed: Path, tmp_path: Path) -> None:
    class Stop(Observer):
        def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
            if name == "pruned0":
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    config = make_config(settings(**WANTED, out=str(folder)))
    given = config, config.teacher, config.student, config.data
    with pytest.raises(KeyboardInterrupt):
        run_stages(*given, Stop(), until="prune")
    run_stages(*given, Observer(), until="prune")
    ours, theirs = (load_file(where / "pruned" / "model.safetensors") for where in (folder, squeezed))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


SMALL = {
    "teacher": "tiny_networks:teacher",
    "tap": "4",
    "epochs": 1,
    "prune": 0.5,
    "prune_steps": 1,
    "prune_epochs": 1,
    "val_limit": 20,
}


def test_networks_that_learned_together_prune_under_the_finished_teacher(tmp_path: Path) -> None:
    given = settings(**SMALL, student="tiny_networks:prunable", objective="dml", out=str(tmp_path / "run"))
    report = iekd.run(**given)
    assert [stage.name for stage in report.stages] == ["plan", "distill", "prune", "export", "benchmark"]
    assert {"task", "kd"} <= {curve.name for curve in report.curves if curve.stage == "pruned student"}
    before, after = (count_macs(load_artefact(tmp_path / "run" / name).network, 32) for name in ("student", "pruned"))
    assert report.student.macs == after <= 0.5 * before


def test_a_share_of_the_latency_is_pruned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock that counts computation, so that it cannot be restless; prune's own tests measure."""
    asked: list[dict[str, Any]] = []

    def clock(whole: nn.Module, **how: Any) -> Callable[[nn.Module], float]:
        asked.append(how)
        return lambda network: count_macs(network, how["image_size"]) / count_macs(whole, how["image_size"])

    monkeypatch.setattr("iekd.compress.pruning.share.latency_beside", clock)
    given = settings(**SMALL, student="tiny_networks:prunable", prune_goal="latency", threads=1)
    report = iekd.run(**given, out=str(tmp_path / "run"))
    (history,) = load_artefact(tmp_path / "run" / "pruned").facts["pruning"]
    before, after = (count_macs(load_artefact(tmp_path / "run" / name).network, 32) for name in ("student", "pruned"))
    assert history["goal"] == {"latency_left": 0.5}
    assert report.student.macs == after <= 0.5 * before
    assert len(asked) == 2  # rehearsed before training, then done
    assert all((how["backend"], how["threads"], how["classes"]) == ("onnxruntime", 1, 10) for how in asked)


def test_a_recovery_goes_on_with_the_widths_that_it_was_begun_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a clock that after the first start gives every candidate twice the time: another cut would be chosen."""
    starts: list[str] = []

    def clock(whole: nn.Module, **how: Any) -> Callable[[nn.Module], float]:
        restless = (2.0 if len(starts) > 1 else 1.0) / count_macs(whole, how["image_size"])
        return lambda network: restless * count_macs(network, how["image_size"])

    class Stop(Observer):
        def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
            if name == "pruned0" and len(starts) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr("iekd.compress.pruning.share.latency_beside", clock)
    changes = {"student": "tiny_networks:wide", "prune_goal": "latency", "prune_epochs": 2, "threads": 1}
    config = make_config(settings(**{**SMALL, **changes}, out=str(tmp_path / "run")))
    given = config, config.teacher, config.student, config.data
    starts.append("first")
    with pytest.raises(KeyboardInterrupt):
        run_stages(*given, Stop(), until="prune")
    cut = load_artefact(tmp_path / "run" / "checkpoints" / "pruned0" / "cut")
    assert "accuracy" not in cut.facts, "that of the network before"
    starts.append("second")
    run_stages(*given, Observer(), until="prune")
    pruned = load_artefact(tmp_path / "run" / "pruned")
    assert pruned.architecture.pruned == cut.architecture.pruned
    assert pruned.facts["pruning"] == cut.facts["pruning"]


def test_one_process_cuts_and_all_train_what_it_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = tiny_networks.prunable(10)
    names = tuple(str(number) for number in range(10))
    whole = Artefact(network, Architecture("object", "prunable"), names, Preprocessing(size=32), {"accuracy": 0.9})
    save_artefact(tmp_path / "student", whole)
    trained: list[dict[str, torch.Tensor]] = []

    def train(network: nn.Module, *_given: Any) -> Any:
        trained.append({name: value.clone() for name, value in network.state_dict().items()})
        return SimpleNamespace(figures={}), None

    monkeypatch.setattr(pruned_student, "distill_network", train)
    job = dataclasses.make_dataclass("Job", ["config", "folder", "device", "preprocessing", "data", "accelerator"])
    job.accuracy = lambda *_given: 0.5
    config = make_config(settings(**SMALL))
    places = config, tmp_path, torch.device("cpu"), whole.preprocessing, SimpleNamespace(classes=names)

    def start(main: bool) -> None:
        one: Any = job(*places, SimpleNamespace(is_main_process=main))
        once = (lambda work: work()) if main else (lambda _work: None)
        pruned_student.prune_student(SimpleNamespace(epochs=1, lr=0.1), one, once, network, network)

    start(main=True)
    monkeypatch.setattr(pruned_student, "prune", None)
    start(main=False)
    ours, theirs = trained
    assert ours["0.weight"].shape == (16, 3, 3, 3)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_share_is_of_what_the_goal_counts() -> None:
    network = tiny_networks.prunable(10)
    for goal, expected in (("macs", Macs(0.3)), ("channels", Ratio(0.3))):
        config = make_config(settings(prune_goal=goal))
        assert goal_of_share(config, 0.3, network, 32, 10) == expected


def test_a_network_of_ones_own_is_pruned_and_stays_as_wide_as_it_was(tmp_path: Path) -> None:
    student = tiny_networks.prunable(10)
    given = {**settings(**SMALL, precision="int8", qat="never"), "student": student, "out": str(tmp_path / "run")}
    macs = count_macs(student, 32)
    report = iekd.run(**given)
    assert report.student.macs <= 0.5 * macs
    assert count_macs(student, 32) == macs


@pytest.mark.parametrize(("objective", "count"), [("ce", 1), ("ce+kd", 0)])
def test_a_recovery_without_the_teacher_is_told_at_the_start_and_in_the_report(
    objective: str, count: int, tmp_path: Path
) -> None:
    told: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            told.append(text)

    given = settings(**SMALL, student="tiny_networks:prunable", objective=objective, out=str(tmp_path / "run"))
    report = iekd.run(**given, observer=Listener())
    for notes in (told, report.notes):
        assert sum("on the labels alone" in note for note in notes) == count


def test_rankings_that_fresh_weights_do_not_tell_apart_are_rehearsed_all_the_same(tmp_path: Path) -> None:
    """Fresh normalisations scale all channels alike: taken as they are, one step would leave nothing to the next."""
    changes = {"student": "mobilenetv2_050", "prune": 0.4, "prune_criterion": "bn-scale", "prune_scope": "global"}
    config = make_config(settings(**changes))
    plan = make_plan(config, load_data("digits"), config.teacher, config.student, Observer())
    rehearse(config, plan, 10, config.teacher, config.student)


@pytest.mark.slow
def test_what_is_diagnosed_is_the_pruned_student(squeezed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(squeezed, run)
    found = diagnose(run, noise=[0.2], seeds=2)
    pruned = load_artefact(run / "pruned")
    assert found.network == "pruned"
    assert set(found.artefacts) == {"teacher", "pruned"}
    assert found.noise[0].levels[0].mean == pytest.approx(pruned.facts["accuracy"])
    stored = torch.load(run / "checkpoints" / "pruned1" / "last.pt", weights_only=True)["task"]
    widths = {part: len(stored[f"objective.lifts.0.{part}_index"]) for part in ("inherit", "explore")}
    (tap,) = found.taps
    assert [part.channels for part in tap.parts[:2]] == list(widths.values())
    assert tap.student_shape[0] == Tapped(pruned.network).shapes(32)[0].channels
    report = read_report(run / "report.json")
    assert report.diagnosis == found
    assert found.remark in (run / "report.html").read_text(encoding="utf-8")
    assert found.remark.startswith("Diagnosed is the pruned student")
    assert (f"is {report.student.precision}, the network float32" in found.remark) == (
        report.student.precision != "fp32"
    )
    assert kept_for_report(run, open_run(run).config) == found
    before = found.model_copy(update={"network": "student", "artefacts": {"student": sha256_of(run / "student")}})
    (run / "diagnosis.json").write_text(before.model_dump_json())
    assert kept_for_report(run, open_run(run).config) is None, "made before the pruning"


def test_a_target_on_a_board_ends_with_its_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limits = {"max_latency": "0.001us", "min_retained": 0.01}
    report = iekd.run(**settings(target="jetson-orin", precision="best", epochs=1, out=str(folder), **limits))
    assert report.verdict.kept, "this machine's latency is not the board's"
    assert "no more than 0.001us is judged there" in " ".join(report.notes)
    assert (folder / "student.bundle.zip").is_file()
    index = json.loads((folder / "variants" / "variants.json").read_text())
    made = {entry["precision"] for entry in index["variants"]}
    assert made | {text.split(":")[0] for text in index["refused"]} == set(TARGETS["jetson-orin"].schemes)
    assert report.variants == []
    assert any("jetson-orin measures its own" in note for note in report.notes)
    shutil.unpack_archive(folder / "student.bundle.zip", tmp_path / "board")
    (place,) = (tmp_path / "board").iterdir()
    assert {path.stem for path in (place / "models").iterdir()} == {"fp32", *made}
    assert json.loads((place / "limits.json").read_text())["max_latency_ms"] == pytest.approx(1e-6)


@pytest.mark.parametrize(("correct", "limit", "told"), [(47, None, 1), (47, 0.1, 0), (50, None, 0)])
def test_a_loss_on_the_validation_images_is_held_against_the_limit(
    correct: int, limit: float | None, told: int
) -> None:
    """Training images decide, which the student has seen; the report must not be silent where they were too kind."""
    report = sample_report()
    exact = report.student
    top1 = exact.accuracy.top1.model_copy(update={"value": exact.accuracy.top1.value * correct / 50})
    int8 = exact.model_copy(update={"precision": "int8", "accuracy": exact.accuracy.model_copy(update={"top1": top1})})
    models = {"teacher": report.teacher, "student": exact, "student-int8": int8}
    notes = losses(make_config({"teacher": "t", "student": "s", "max_drop": limit}), models)
    assert len(notes) == told
    assert all("int8 loses" in note and "more than --max-drop 0.01" in note for note in notes)


@pytest.mark.parametrize(
    ("times", "changes", "told"),
    [
        (1.5, {"precision": "int8"}, True),
        (0.5, {"precision": "int8"}, False),
        (1.0, {"precision": "int8"}, False),
        (1.5, {"precision": "best"}, False),
        (1.5, {"precision": "int8", "target": "jetson-orin"}, False),
    ],
)
def test_a_precision_that_costs_time_here_is_told(times: float, changes: dict[str, str], told: bool) -> None:
    exact = sample_report().student
    median = {key: value * times for key, value in exact.latency.median.model_dump().items()}
    latency = exact.latency.model_copy(update={"median": Interval(**median)})
    int8 = exact.model_copy(update={"precision": "int8", "latency": latency})
    config = make_config({"teacher": "t", "student": "s", **changes})
    notes = slower_than_float(config, {"student": exact, "student-int8": int8}, int8)
    assert bool(notes) == told
    assert all("int8 is slower on this machine than fp32" in note and exact.file in note for note in notes)
    assert slower_than_float(config, {"student": exact}, exact) == []


FP8_ON_ORIN = (
    r"jetson-orin has no fp8: its GPU is SM 8\.7, fp8 needs SM 8\.9 or later\.  Choose one of fp16, int8, bf16\."
)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prune": 1.0}, InputError, "--prune"),
        ({"prune": -0.1}, InputError, "--prune"),
        ({"prune": 0.5, "prune_goal": "energy"}, InputError, "--prune-goal"),
        (
            {
                "student": "tiny_networks:prunable",
                "tap": "4",
                "prune": 0.5,
                "prune_goal": "latency",
                "target": "jetson-orin",
            },
            InputError,
            "measured on the board",
        ),
        ({"target": "jetson-orin", "precision": "fp8"}, InputError, f"^{FP8_ON_ORIN}$"),
        ({"target": "cpu", "precision": "fp8"}, InputError, "^cpu has no fp8"),
        (
            {"target": "cpu", "precision": "fp16"},
            InputError,
            r"^cpu has no fp16\.  Choose one of fp32, best, int8; fp16 is for cuda, tensorrt, jetson-orin,",
        ),
        ({"target": "openvino", "precision": "bf16"}, InputError, "openvino has no bf16.*int8; bf16 is for tensorrt"),
        ({"precision": "int4"}, InputError, "unknown --precision 'int4'"),
        ({"target": "tensorrt"}, EnvironmentMissingError, "TensorRT"),
        ({"target": "cpuu"}, InputError, "unknown --target 'cpuu'"),
        ({"student": "tiny_networks:teacher", "prune": 0.5, "tap": "4"}, InputError, "prune"),
        ({"prune": 0.5, "prune_criterion": "random"}, InputError, "--prune-criterion"),
        (
            {"student": "vit_tiny_patch16_224", "prune": 0.3, "prune_criterion": "bn-scale"},
            InputError,
            "step 1 of 2: criterion bn-scale needs batch normalisation",
        ),
        (
            {"student": "tiny_networks:prunable", "prune": 0.8, "tap": "4"},
            InputError,
            "step 2 of 2: .* cannot be pruned",
        ),
    ],
)
def test_what_cannot_be_done_is_told_before_training(
    changes: dict[str, Any], error: type[IekdError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        iekd.run(**settings(**changes, out=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "precision" not in changes or not (tmp_path / "run").exists()  # known before the folder is made
