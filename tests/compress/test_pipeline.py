"""The main job, whole, at small size."""

from __future__ import annotations

import json
import shutil
import signal
import textwrap
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from killed import run_until_killed
from PIL import Image
from processes import run_forked
from safetensors.torch import load_file
from small import environment_of, settings

import iekd
from iekd.compress.config_input import make_config
from iekd.compress.data import wrap_datasets
from iekd.compress.objectives.base import Objective
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.deploy.export import read_metadata
from iekd.deploy.report import read_report
from iekd.errors import VerificationError
from iekd.models.checkpoint import load_artefact


def test_a_run_leaves_a_file_that_ships_and_its_proof(finished_run: Path) -> None:
    report = read_report(finished_run / "report.json")
    assert report.verdict.kept
    assert report.student.macs < report.teacher.macs
    assert report.student.accuracy.total == report.dataset.val_images == 60
    assert {curve.name for curve in report.curves if curve.stage == "student"} >= {
        "task",
        "kd",
        "inherit",
        "explore",
        "accuracy",
    }
    for model in (report.teacher, report.student):
        assert model.verification.top1_agreement == 1
        trace = np.load(finished_run / model.latency.trace)
        assert len(trace["milliseconds"]) == model.latency.iterations
        assert float(np.median(trace["milliseconds"])) == pytest.approx(model.latency.median.value)
    assert (finished_run / "report.html").stat().st_size > 10_000
    assert list((finished_run / "events" / "student").iterdir())
    assert {path.name for path in (finished_run / "checkpoints" / "student").iterdir()} >= {"last.pt", "best.pt"}


def test_the_saved_settings_leave_nothing_open_and_give_the_same_run(finished_run: Path) -> None:
    import yaml

    saved = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert saved["lr"] > 0
    assert saved["augment"] == "digits"
    assert saved["epochs"] == 2


def test_a_run_that_goes_on_writes_its_own_damaged_artefacts_anew(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    damaged = [folder / role / "model.safetensors" for role in ("teacher", "student")]
    for file in damaged:
        file.write_bytes(b"damaged")
    given = make_config(settings(out=str(folder), data="digits"))
    run_stages(given, given.teacher, given.student, given.data, Observer(), until="distill")
    for file in damaged:
        assert load_file(file).keys() == load_file(finished_run / file.relative_to(folder)).keys()


def test_the_student_carries_nothing_of_its_training(finished_run: Path) -> None:
    import timm

    names = set(timm.create_model("test_efficientnet", num_classes=10).state_dict())
    assert set(load_file(finished_run / "student" / "model.safetensors")) == names


def test_one_file_is_enough_to_run_the_model(finished_run: Path, tmp_path: Path) -> None:
    """Only the file, ONNX Runtime, numpy and Pillow: class names and preprocessing come out of the metadata."""
    from sklearn.datasets import load_digits

    session = onnxruntime.InferenceSession(str(finished_run / "student.onnx"))
    entries = session.get_modelmeta().custom_metadata_map
    classes, how = json.loads(entries["classes"]), json.loads(entries["preprocessing"])
    artefact = load_artefact(finished_run / "student")
    image = Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).convert("RGB")
    image = image.resize((how["size"], how["size"]), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, np.float32) / 255 - how["mean"]) / how["std"]
    logits = session.run(None, {"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    assert logits.shape == (1, len(classes))
    ours = artefact.network.eval()(torch.from_numpy(artefact.preprocessing(image))[None]).detach().numpy()
    assert np.abs(logits - ours).max() < 1e-3 * max(1.0, np.abs(ours).max())
    assert read_metadata(finished_run / "student.onnx").classes == tuple(classes)


def test_a_batch_of_any_size_runs(finished_run: Path) -> None:
    session = onnxruntime.InferenceSession(str(finished_run / "student.onnx"))
    for count in (1, 7):
        assert session.run(None, {"images": np.zeros((count, 3, 32, 32), np.float32)})[0].shape == (count, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("vit_tiny_patch16_224", "mobilenetv3_small_050"),
        ("convnext_atto", "efficientnet_b0"),
    ],
)
def test_families_of_teachers(tmp_path: Path, teacher: str, student: str) -> None:
    report = iekd.run(
        **settings(teacher=teacher, student=student, image_size=64, train_limit=64, epochs=1, out=str(tmp_path / "run"))
    )
    assert report.student.name == student
    assert report.teacher.verification.relative_difference < 1e-3


class Residual(torch.nn.Module):
    """A network that timm does not know: no forward_intermediates."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(width)
        self.body = torch.nn.Conv2d(width, width, 3, padding=1)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes)."""
        maps = torch.relu(self.norm(self.stem(images)))
        return self.head((maps + torch.relu(self.body(maps))).mean((2, 3)))


def test_networks_and_data_sets_of_ones_own(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(48) % 2
    images = (random.integers(0, 80, (48, 24, 24, 3)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    pairs = list(zip(images, labels.tolist(), strict=True))
    data = wrap_datasets(pairs[:32], pairs[32:], classes=["dark", "light"])
    report = iekd.run(
        Residual(2, 16),
        Residual(2, 8),
        data,
        **{key: value for key, value in settings(train_limit=None, val_limit=None, batch_size=16).items()
           if key not in ("teacher", "student")},
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert report.dataset.classes == ["dark", "light"]
    assert report.student.parameters < report.teacher.parameters


class Bitwise(Residual):
    """With an operator that ONNX Runtime has and TensorRT has not."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes)."""
        return super().forward(images) + ((8 * images[:, :1, 0, 0]).int() & 1).float()


def test_an_operator_that_tensorrt_lacks_ends_a_run_for_an_engine(tmp_path: Path) -> None:
    """Of the float32 student, which is built on the board; the teacher never gets there."""
    given = {key: value for key, value in settings(epochs=1).items() if key not in ("teacher", "student")}
    given |= {"target": "jetson-orin", "precision": "fp32"}
    with pytest.raises(VerificationError, match=r"BitwiseAnd \(node .*\) is not on NVIDIA's list"):
        iekd.run(Residual(10, 16), Bitwise(10, 8), "digits", **given, out=str(tmp_path / "refused"))
    assert not (tmp_path / "refused" / "student.bundle.zip").exists()
    iekd.run(Bitwise(10, 16), Residual(10, 8), "digits", **given, out=str(tmp_path / "bundled"))
    assert (tmp_path / "bundled" / "student.bundle.zip").is_file()


def test_networks_by_function_and_artefacts(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import torch
        def small(num_classes):
            return torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2),
                torch.nn.Flatten(), torch.nn.Linear(32, num_classes))
        """)
    )
    monkeypatch.chdir(tmp_path)
    report = iekd.run(
        **settings(teacher=str(finished_run / "teacher"), teacher_epochs=0, student="mine:small", epochs=1, out="run")
    )
    assert report.teacher.accuracy.correct == read_report(finished_run / "report.json").teacher.accuracy.correct
    assert report.student.name == "mine:small"


def test_own_weights_for_the_teacher(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    network = timm.create_model("resnet10t", num_classes=10)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pth")
    iekd.run(
        **settings(teacher_weights=str(tmp_path / "mine.pth"), teacher_epochs=None, epochs=1, out=str(tmp_path / "run"))
    )
    kept = load_file(tmp_path / "run" / "teacher" / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    """One run, killed with SIGKILL again and again, each time later, and then left alone; another, never disturbed."""

    def start(folder: str, stage: str, at: int) -> int:
        options = settings(out=str(tmp_path / folder))
        return run_forked(run_until_killed, options, stage, at, environment=environment_of()).returncode

    kills = [
        ("teacher", 2),
        ("factors", 3),
        ("factors-epoch", 1),
        ("student", 3),
        ("student-epoch", 0),
        ("student", 7),
        ("export", 1),
        ("benchmark", 40),
    ]
    for stage, at in kills:
        assert start("killed", stage, at) == -signal.SIGKILL, f"was not running {stage} any more"
    assert start("killed", "none", 0) == 0
    assert start("whole", "none", 0) == 0
    for role in ("teacher", "student"):
        whole = load_file(tmp_path / "whole" / role / "model.safetensors")
        resumed = load_file(tmp_path / "killed" / role / "model.safetensors")
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), role
    before, after = (read_report(tmp_path / folder / "report.json") for folder in ("whole", "killed"))
    assert before.curves == after.curves
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_an_objective_that_turns_nan_keeps_what_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iekd.compress import run_objective
    from iekd.errors import DivergenceError

    build = run_objective.build_objective

    def poisoned(*args: object, **kwargs: object) -> Objective:
        objective = build(*args, **kwargs)  # type: ignore[arg-type]
        forward, calls = objective.forward, []

        def broken(*inputs: object) -> dict[str, torch.Tensor]:
            calls.append(1)
            terms = forward(*inputs)  # type: ignore[arg-type]
            return {**terms, "explore": terms["explore"] / 0} if len(calls) > 5 else terms

        objective.forward = broken  # type: ignore[method-assign]
        return objective

    monkeypatch.setattr(run_objective, "build_objective", poisoned)
    with pytest.raises(DivergenceError, match=r"'explore' of stage 'student' became -inf in epoch 2, step 2"):
        iekd.run(**settings(out=str(tmp_path / "run")))
    assert (tmp_path / "run" / "checkpoints" / "student" / "last.pt").exists()
    assert (tmp_path / "run" / "teacher" / "model.safetensors").exists()
