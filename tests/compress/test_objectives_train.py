"""Every objective in a whole run: it trains, is stopped and goes on to the same weights, and its student exports."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_networks
import torch
from objective_table import MUTUAL, TABLE, Row
from safetensors.torch import load_file
from small import settings

import iekd
from iekd.compress.config_input import make_config
from iekd.compress.diagnose import diagnose
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.training_state import History
from iekd.compress.unread import unread_note
from iekd.errors import InputError, RunFolderError
from iekd.models.checkpoint import load_artefact

ROWS = (*TABLE, *(Row(name, {}, frozenset(terms)) for name, terms in MUTUAL))


def tiny(out: Path, **changes: Any) -> dict[str, Any]:
    return settings(
        **{
            "teacher": "tiny_networks:teacher",
            "student": "tiny_networks:student",
            "tap": "4",
            "image_size": 16,
            "train_limit": 96,
            "views": 2,
            "bench_seconds": 0.05,
            "teacher_epochs": 1,
            "factor_epochs": 1,
            "lr": 0.02,
            "out": str(out),
            **changes,
        }
    )


class Stop(Observer):
    """Interrupts after the student's first epoch, as Ctrl-C does."""

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        if name == "student" and epoch == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained teacher, for all."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    iekd.run(**tiny(out, objective="ce", epochs=1, teacher_epochs=3))
    return str(out / "teacher")


def _of_labels(term: str) -> bool:
    return term.removeprefix("a.").removeprefix("b.") == "task"


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_it_trains_resumes_and_exports(row: Row, teacher: str, tmp_path: Path) -> None:
    changes = dict(row.settings)
    if row not in TABLE:
        changes["teacher"] = "tiny_networks:teacher"
    else:
        changes |= {"teacher": teacher, "teacher_epochs": 0}
    whole, stopped = (tiny(tmp_path / name, objective=row.name, epochs=4, **changes) for name in ("a", "b"))
    report = iekd.run(**whole)
    for observer, expectation in ((Stop(), pytest.raises(KeyboardInterrupt)), (Observer(), contextlib.nullcontext())):
        config = make_config(stopped)
        with expectation:
            run_stages(config, config.teacher, config.student, config.data, observer, until="distill")
    weights, again = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    curves = {curve.name: curve.values for curve in report.curves if curve.stage == "student"}
    assert row.terms <= set(curves)
    assert curves["loss"][-1] < curves["loss"][0]
    own = [sum(values) for values in zip(*(curves[term] for term in row.terms if not _of_labels(term)), strict=True)]
    assert not own or own[-1] < own[0], "what it adds to the labels' loss"
    assert report.student.verification.top1_agreement == 1


def test_both_networks_of_mutual_learning_ship(tmp_path: Path) -> None:
    report = iekd.run(**tiny(tmp_path / "run", objective="dml", epochs=1))
    assert [stage.name for stage in report.stages] == ["plan", "distill", "export", "benchmark"]
    for role in ("teacher", "student"):
        assert (tmp_path / "run" / f"{role}.onnx").is_file()
        assert load_artefact(tmp_path / "run" / role).architecture.name == f"tiny_networks:{role}"


def test_two_networks_learn_each_at_its_own_rate(teacher: str, tmp_path: Path) -> None:
    """A network that comes trained must not be taken apart at the rate of one from scratch."""
    changes = {"teacher": teacher, "objective": "dml", "epochs": 1, "lr": 0.02}
    moved = {}
    for name, rates in {"default": {}, "still": {"teacher_lr": 1e-12}, "fast": {"teacher_lr": 0.02}}.items():
        config = make_config(tiny(tmp_path / name, **{**changes, "teacher_epochs": None, **rates}))
        run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill")
        before, after = (load_file(Path(at) / "model.safetensors") for at in (teacher, tmp_path / name / "teacher"))
        learned = [key for key in before if "running" not in key and "batches" not in key]
        moved[name] = max((after[key] - before[key]).abs().max().item() for key in learned)
    assert moved["still"] < 1e-6 < moved["default"] < 0.2 * moved["fast"], "3e-4 against 2e-2"


def test_several_teachers_are_clipped_each_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def fit(task: Any, *_: Any, apart: Any = (), **__: Any) -> History:
        seen.append([sum(parameter.numel() for parameter in group) for group in apart])
        return History({"loss": [0.0]})

    monkeypatch.setattr("iekd.compress.teacher.fit", fit)
    two = "tiny_networks:teacher,tiny_networks:student"
    run_stages(
        make_config(tiny(tmp_path / "run", teacher=two)),
        two,
        "tiny_networks:student",
        "digits",
        Observer(),
        until="teacher",
    )
    sizes = [
        sum(parameter.numel() for parameter in network(10).parameters())
        for network in (tiny_networks.teacher, tiny_networks.student)
    ]
    assert seen == [sizes]


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"objective": "dml", "mutual_transfer": "nonsense", "split": "relevance"}, "--split, --mutual-transfer"),
        ({"objective": "dml", "teacher_epochs": 3, "views": 4, "prune": 0.5}, "--teacher-epochs"),
        ({"objective": "kd", "inherit_fraction": 0.0, "explore_weight": 0.0}, "--explore-weight, --inherit-fraction"),
        ({"objective": "ft", "inherit_weight": 9.0, "explore_form": "cka"}, "--inherit-weight, --explore-form"),
        ({"objective": "kd", "factor_channels": 9, "logit_options": "beta=1"}, "--logit-options, --factor-channels"),
        ({"objective": "ie-ft+kd", "transfer_weight": 3.0}, "--transfer-weight"),
        ({"objective": "ie-ft", "transfer_weight": 3.0, "inherit_fraction": 1.0}, ""),
        ({"objective": "ie-dml", "mutual_transfer": "at", "inherit_weight": 2.0, "split": "random"}, ""),
        ({"objective": "ie-ft+dkd", "logit_options": "beta=8", "factor_channels": 9, "explore_margin": 1.0}, ""),
        ({"objective": "dml", "teacher_epochs": 0}, ""),
        ({"objective": "misspelt", "teacher_epochs": 3, "split": "random"}, ""),
    ],
)
def test_a_setting_that_the_objective_does_not_read_is_told(changes: dict[str, Any], flags: str) -> None:
    config = make_config({"teacher": "resnet18", "student": "resnet10t", **changes})
    expected = (f"--objective {changes['objective']} does not read {flags}.",) if flags else ()
    assert unread_note(config) == expected


def test_a_run_tells_of_settings_that_nothing_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    observer = Observer()
    monkeypatch.setattr(observer, "note", notes.append)
    config = make_config(tiny(tmp_path / "run", objective="kd", epochs=1, split="random"))
    run_stages(config, config.teacher, config.student, config.data, observer, until="plan")
    assert "--objective kd does not read --split, --factor-epochs." in notes


def test_several_teachers_answer_as_one(tmp_path: Path) -> None:
    two = "tiny_networks:teacher,tiny_networks:student"
    report = iekd.run(**tiny(tmp_path / "run", teacher=two, objective="ie-ft+kd", factor_epochs=2))
    assert report.teacher.name == two
    assert {"task0", "task1"} <= {curve.name for curve in report.curves if curve.stage == "teacher"}
    again = load_artefact(tmp_path / "run" / "teacher").network.eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(again(images), sum(member(images) for member in again.members) / 2, atol=1e-6)
    kept = str(tmp_path / "run" / "teacher")
    grown = iekd.run(**tiny(tmp_path / "more", teacher=f"{kept},{kept}", objective="kd", epochs=1, teacher_epochs=0))
    assert grown.teacher.accuracy.correct == report.teacher.accuracy.correct


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "ie-fit"}, "Did you mean"),
        ({"objective": "ie-ft", "tap": "9"}, "has no tap 9"),
        ({"objective": "ie-ft", "teacher_tap": "layer9"}, "has no tap layer9.*by name: 0, 1, 2, 3, 4"),
        ({"objective": "ie-ft", "tap": "3,4", "teacher_tap": "4"}, "1 taps of the teacher against 2 of the student"),
        ({"objective": "kd", "tap": "9"}, "has no tap 9"),
        ({"objective": "kd", "tap": "4", "teacher_tap": "3,4"}, "--teacher-tap names 2 stages and --tap 1"),
        ({"objective": "kd+kd"}, "has kd twice.*--kd-weight"),
        ({"objective": "kd+dkd", "logit_options": "gamma=1"}, "unknown option of a logit term 'gamma'"),
        ({"objective": "ie-ft", "explore_form": "cka", "batch_size": 3}, "--batch-size 3 has too few.*4 or more"),
        ({"objective": "ie-dml", "explore_form": "cka", "batch_size": 2}, "--batch-size 2 has too few"),
        ({"teacher": "resnet10t", "image_size": 32, "batch_size": 1}, "--batch-size 1: a map of the teacher has one"),
        ({"objective": "dml", "teacher_tap": "layer9"}, "has no tap layer9"),
        ({"objective": "ie-dml", "tap": "3,4", "teacher_tap": "4"}, "taps of the .* against"),
        ({"objective": "ie-dml", "mutual_transfer": "od"}, "unknown transfer for ie-dml 'od'"),
        ({"objective": "ie-ft", "student": "tiny_networks:flat"}, "no module whose output is a feature map"),
        ({"objective": "ie-ft", "inherit_fraction": 0.01}, "leaves a part empty"),
        ({"objective": "dml+kd"}, "stands alone"),
        ({"objective": "ie-dml", "split": "relevance"}, "needs a finished teacher"),
        ({"student": "tiny_networks:teacher,tiny_networks:student"}, "the student is one network"),
        ({"objective": "dml", "teacher": "tiny_networks:teacher,tiny_networks:student"}, "trains two networks"),
        ({"teacher": "tiny_networks:teacher,resnett18"}, "unknown model 'resnett18'"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        iekd.run(**tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_one_network_cannot_teach_itself(tmp_path: Path) -> None:
    network = tiny_networks.student(10)
    with pytest.raises(InputError, match="dml trains two networks together, not 1"):
        iekd.run(**tiny(tmp_path / "run", objective="dml", teacher=network, student=network))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("student", "changes"),
    [
        ("flat", {"objective": "kd", "tap": "-1"}),
        ("flat", {"objective": "dml", "tap": "-1"}),
        ("fixed", {"objective": "kd", "tap": "-1"}),
        ("fixed", {"objective": "ie-ft+kd", "tap": "2"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["objective"],
)
def test_networks_of_one_size_and_without_maps_are_trained(
    student: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    given = tiny(tmp_path / "run", student=f"tiny_networks:{student}", epochs=1, **changes)
    assert iekd.run(**given).student.verification.top1_agreement == 1


class Notes(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_teacher_and_student_are_tapped_each_at_its_own_stage(tmp_path: Path) -> None:
    notes, out = Notes(), tmp_path / "run"
    given = tiny(out, teacher="tiny_networks:transformer", teacher_tap="blocks.0", objective="ie-at", epochs=1)
    iekd.run(**{**given, "tap": "auto"}, observer=notes)
    assert "Tapped: blocks.0 of the teacher, 4 of the student." in notes.told
    (tap,) = diagnose(out, images=16).taps
    assert (tap.stage, tap.teacher_shape, tap.student_shape) == (4, [16, 4, 4], [8, 4, 4])


def test_what_ie_dml_lifts_can_be_chosen(tmp_path: Path) -> None:
    report = iekd.run(**tiny(tmp_path / "run", objective="ie-dml", mutual_transfer="at", epochs=1))
    terms = {curve.name for curve in report.curves if curve.stage == "student"}
    assert {"a.inherit", "b.explore"} <= terms
    assert not any("reconstruction" in term for term in terms), "attention maps have nothing to learn beforehand"


def test_mutual_learning_has_no_teacher_to_train_before(tmp_path: Path) -> None:

    given = tiny(tmp_path / "run", objective="dml")
    with pytest.raises(InputError, match="no teacher to train before"):
        run_stages(
            make_config({**given, "data": "digits"}),
            given["teacher"],
            given["student"],
            "digits",
            Observer(),
            until="teacher",
        )


def test_what_od_reads_is_told_and_part_of_the_run(teacher: str, tmp_path: Path) -> None:
    """Maps behind the activation are another objective's: a run that an older version began does not go on."""
    given = tiny(tmp_path / "run", objective="od", epochs=1, teacher=teacher, teacher_epochs=0, tap="auto")
    notes = Notes()
    run_stages(make_config(given), teacher, given["student"], "digits", notes, until="distill")
    assert any(text.startswith("Tapped: ") for text in notes.told)
    file = tmp_path / "run" / "run.json"
    state = json.loads(file.read_text())
    assert state["identity"].pop("maps for its objective") == "before activations"
    file.write_text(json.dumps(state))
    with pytest.raises(RunFolderError, match="holds a run of other maps for its objective"):
        run_stages(make_config(given), teacher, given["student"], "digits", Observer(), until="distill")
