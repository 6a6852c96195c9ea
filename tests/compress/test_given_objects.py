"""Networks, weights and data that a name alone does not identify: left as they are, told apart, given again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_networks
import torch
from PIL import Image
from quantization_samples import write
from small import settings
from torch import nn
from torch.utils.data import TensorDataset

from iekd.compress.config_input import make_config
from iekd.compress.data import wrap_datasets
from iekd.compress.diagnose import diagnose
from iekd.compress.given import digest_of
from iekd.compress.job import reopen_data
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.deploy.predict import predict
from iekd.errors import InputError, RunFolderError

GIVEN = {"tap": "4", "image_size": 16, "train_limit": 64, "epochs": 1, "views": 2}


class Notes(Observer):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def network(seed: int, kind: Any = tiny_networks.teacher) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = kind(10)
    return made


def distil(
    out: Path, teacher: str | nn.Module, student: str | nn.Module, observer: Observer | None = None, **changes: Any
) -> None:
    names = {role: given if isinstance(given, str) else "Sequential"
             for role, given in (("teacher", teacher), ("student", student))}  # fmt: skip
    config = make_config(settings(**{**GIVEN, "out": str(out), "teacher_epochs": None, **names, **changes}))
    run_stages(config, teacher, student, config.data, observer or Observer(), until="distill")


def test_a_run_leaves_its_callers_networks_as_they_are(tmp_path: Path) -> None:
    teacher, student = network(0), network(1, tiny_networks.student)
    before = [digest_of(one) for one in (teacher, student)]
    for number, objective in enumerate(("kd", "dml", "ie-ft+kd")):
        distil(tmp_path / str(number), teacher, student, objective=objective, teacher_epochs=number % 2)
        assert [digest_of(one) for one in (teacher, student)] == before
        assert all(parameter.requires_grad for one in (teacher, student) for parameter in one.parameters())
    again = tmp_path / "again"
    distil(again, teacher, student, objective="kd", teacher_epochs=0)
    first = tmp_path / "0" / "student" / "model.safetensors"
    assert first.read_bytes() == (again / "student" / "model.safetensors").read_bytes()


def test_a_network_that_cannot_be_copied_is_told(tmp_path: Path) -> None:
    teacher = network(0)
    teacher.kept = (torch.ones(2, requires_grad=True) * 2,)  # a tensor of a graph, as a hook may have left it
    with pytest.raises(InputError, match="Sequential cannot be copied"):
        distil(tmp_path / "run", teacher, "tiny_networks:student", objective="kd")


def test_a_run_does_not_go_on_with_another_object(tmp_path: Path) -> None:
    out = tmp_path / "run"
    distil(out, network(0), network(1, tiny_networks.student), objective="kd")
    distil(out, network(0), network(1, tiny_networks.student), objective="kd")
    for teacher, student in (
        (network(2), network(1, tiny_networks.student)),
        (network(0), network(3, tiny_networks.student)),
    ):
        with pytest.raises(RunFolderError, match="of other networks: what it was made from has changed"):
            distil(out, teacher, student, objective="kd")
    state = json.loads((out / "run.json").read_text())
    del state["identity"]["networks"]  # as an older version left it
    (out / "run.json").write_text(json.dumps(state))
    distil(out, network(0), network(1, tiny_networks.student), objective="kd")


def test_a_run_does_not_go_on_with_other_weights_of_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    given = {"objective": "kd", "teacher_weights": str(file)}
    torch.save(network(0).state_dict(), file)
    distil(tmp_path / "run", "tiny_networks:teacher", "tiny_networks:student", **given)
    torch.save(network(1).state_dict(), file)
    with pytest.raises(RunFolderError, match="of other networks"):
        distil(tmp_path / "run", "tiny_networks:teacher", "tiny_networks:student", **given)
    artefact = tmp_path / "artefact"
    shutil.copytree(tmp_path / "run" / "teacher", artefact)
    distil(tmp_path / "second", str(artefact), "tiny_networks:student", objective="kd")
    distil(tmp_path / "other", network(5), "tiny_networks:student", objective="kd")
    shutil.rmtree(artefact)
    shutil.copytree(tmp_path / "other" / "student", artefact)
    with pytest.raises(RunFolderError, match="of other networks"):
        distil(tmp_path / "second", str(artefact), "tiny_networks:student", objective="kd")


def test_a_teacher_that_is_taken_as_trained_is_told_how_its_images_are_normalised(tmp_path: Path) -> None:
    notes = Notes()
    distil(tmp_path / "run", network(0), "tiny_networks:student", notes, objective="kd")
    assert any("taken as trained, on images of mean 0.485,0.456,0.406 and" in text for text in notes.texts)
    told = Notes()
    distil(tmp_path / "named", "tiny_networks:teacher", "tiny_networks:student", told, objective="kd")
    distil(tmp_path / "second", str(tmp_path / "named" / "teacher"), "tiny_networks:student", told, objective="kd")
    distil(tmp_path / "mutual", network(0), "tiny_networks:student", told, objective="dml")
    assert not any("taken as trained" in text for text in told.texts)


def test_a_finished_teacher_that_is_shown_images_of_another_size_is_told(tmp_path: Path) -> None:
    own: dict[str, Any] = {"student": "tiny_networks:student", "objective": "kd"}
    distil(tmp_path / "run", "tiny_networks:teacher", **own)
    teacher, told = str(tmp_path / "run" / "teacher"), Notes()
    distil(tmp_path / "same", teacher, observer=told, **own)
    distil(tmp_path / "trained", teacher, observer=told, image_size=24, teacher_epochs=1, **own)
    assert not any("trained on images of" in text for text in told.texts)
    distil(tmp_path / "other", teacher, observer=told, image_size=24, **own)
    assert any("was trained on images of 16 pixels and answers those of 24" in text for text in told.texts)


def test_a_teachers_own_normalisation_is_given_and_travels_with_the_student(tmp_path: Path) -> None:
    told = Notes()
    own: dict[str, Any] = {"objective": "kd", "mean": "0.5", "std": "0.1,0.2,0.3"}
    distil(tmp_path / "run", network(0), "tiny_networks:student", told, **own)
    assert not any("taken as trained" in text for text in told.texts)
    about = json.loads((tmp_path / "run" / "student" / "model.json").read_text())["preprocessing"]
    assert (about["mean"], about["std"]) == ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3])
    distil(tmp_path / "named", "tiny_networks:teacher", "tiny_networks:student", **own)
    teacher = str(tmp_path / "named" / "teacher")
    distil(tmp_path / "again", teacher, "tiny_networks:student", **own)
    with pytest.raises(InputError, match=r"was trained on images of mean 0\.5,0\.5,0\.5 and standard deviation 0\.1,"):
        distil(tmp_path / "other", teacher, "tiny_networks:student", objective="kd", mean="0.4")


def test_teachers_of_other_images_are_no_ensemble(tmp_path: Path) -> None:
    distil(tmp_path / "run", "tiny_networks:teacher", "tiny_networks:student", objective="kd")
    folders = [tmp_path / "run" / "teacher", tmp_path / "other"]
    shutil.copytree(*folders)
    distil(tmp_path / "alike", ",".join(map(str, folders)), "tiny_networks:student", objective="kd")
    about = json.loads((folders[1] / "model.json").read_text())
    about["preprocessing"]["mean"] = [0.5, 0.5, 0.5]
    (folders[1] / "model.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"other was trained on images of mean \[0.5, 0.5, 0.5\], .*teacher on"):
        distil(tmp_path / "both", ",".join(map(str, folders)), "tiny_networks:student", objective="kd")


def test_what_was_made_from_a_data_set_of_ones_own_says_what_to_do(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    part = TensorDataset(images, torch.arange(40) % 4)
    data = wrap_datasets(part, part, classes=["a", "b", "c", "d"])
    out = tmp_path / "run"
    names = {"teacher": "tiny_networks:teacher", "student": "tiny_networks:student"}
    given = {**GIVEN, **names, "data": data.name, "train_limit": None, "val_limit": None}
    config = make_config(settings(**given, out=str(out)))
    run_stages(config, config.teacher, config.student, data, Observer(), until="distill")
    with pytest.raises(InputError, match=r"TensorDataset, was given as a Python object.*diagnose\(run, data="):
        diagnose(out, noise=[0.1], seeds=2)
    with pytest.raises(InputError, match=r"was given as a Python object\.  Add --data"):
        reopen_data(config, "Add --data.")
    assert diagnose(out, noise=[0.1], seeds=2, data=data).images == 40


def test_an_image_too_large_for_pillow_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"cannot read the image .*large\.png .*exceeds limit"):
        list(predict(write(tmp_path / "float.onnx"), [tmp_path / "large.png"]))
