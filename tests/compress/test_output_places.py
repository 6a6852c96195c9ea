"""Where commands on files may write: never over what they read, and over nothing that they did not make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small import command, refused

from iekd.compress.prune import Ratio, prune_artefact
from iekd.errors import InputError
from iekd.files import refuse_output_file, refuse_output_folder, sha256_of
from iekd.models.checkpoint import Artefact, load_artefact, refuse_foreign, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, build, count_parameters

SIZE = 16


def artefact(folder: Path) -> Path:
    """A small network that can be pruned."""
    architecture = Architecture("function", "tiny_networks:wide")
    names = tuple(str(number) for number in range(10))
    network = build(architecture, 10, SIZE)
    save_artefact(folder, Artefact(network, architecture, names, Preprocessing(size=SIZE), {}))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run's folder ``run`` with an artefact, a link to it, files of the user's own, and what stands for ONNX."""
    artefact(tmp_path / "run" / "student")
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "student")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"irreplaceable")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"of another program")
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "m.onnx").write_bytes(b"nothing reads it before its output is looked at")
    (tmp_path / "m-link.onnx").symlink_to("m.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("run", "run/student, which is read, lies in run"),
        ("photos", "photos holds 'holiday.jpg', which is no part of an artefact"),
        ("weights", "weights is not empty and is no artefact"),
        ("notes", "notes is a file, and a folder is to be written"),
        ("notes/a", "notes/a cannot be written"),
        ("run/student", "run/student is read, and writing there would destroy it"),
        ("photos/../run/student", "writing there would destroy it"),
        ("link", "link is read, and writing there would destroy it"),
        ("run/student/cut", "run/student/cut lies in run/student, which is read"),
    ],
)
def test_pruning_deletes_nothing_but_an_artefact(output: str, words: str, place: Path) -> None:
    before = sha256_of(place)
    found = command("prune", "run/student", "-o", output, "--ratio", "0.5", cwd=place)
    refused(found, words)
    assert sha256_of(place) == before


def test_a_source_that_is_named_by_a_link_is_not_pruned_away(place: Path) -> None:
    before = sha256_of(place)
    refused(command("prune", "link", "-o", "run/student", "--ratio", "0.5", cwd=place), "is read")
    assert sha256_of(place) == before


def test_the_working_directory_is_not_replaced(place: Path) -> None:
    (place / "empty").mkdir()
    source = str(place / "run" / "student")
    refused(command("prune", source, "-o", ".", "--ratio", "0.5", cwd=place / "empty"), "working directory")


@pytest.mark.parametrize("output", ["missing", "empty", "older", "link-to-older"])
def test_pruning_may_replace_an_artefact_or_an_empty_folder(output: str, place: Path) -> None:
    (place / "empty").mkdir()
    artefact(place / "older")
    (place / "link-to-older").symlink_to("older")
    prune_artefact(place / "run" / "student", place / output, goal=Ratio(0.5))
    sizes = [count_parameters(load_artefact(place / folder).network) for folder in ("run/student", output)]
    assert sizes[1] < sizes[0]
    assert (place / "link-to-older").is_symlink()


@pytest.mark.parametrize(
    ("model", "output", "words"),
    [
        ("m.onnx", "m.onnx", "m.onnx is read, and writing there would destroy it"),
        ("m.onnx", "photos/../m.onnx", "writing there would destroy it"),
        ("m.onnx", "m-link.onnx", "writing there would destroy it"),
        ("m-link.onnx", "m.onnx", "writing there would destroy it"),
        ("m.onnx", "photos", "photos is a folder, and a file is to be written"),
        ("m.onnx", "notes/q.onnx", "notes/q.onnx cannot be written"),
        ("m.onnx", "m.onnx/q.onnx", "m.onnx/q.onnx lies in m.onnx, which is read"),
    ],
)
def test_quantising_destroys_no_source(model: str, output: str, words: str, place: Path) -> None:
    """Refused before the images are looked for, of which there are none."""
    before = sha256_of(place)
    refused(command("quantize", model, "-o", output, "--data", "folder:none", cwd=place), words)
    assert sha256_of(place) == before


def test_openvinos_two_files_replace_no_source_either(place: Path) -> None:
    (place / "m.onnx").rename(place / "m.bin")
    given = ("--data", "folder:none", "--target", "openvino")
    refused(command("quantize", "m.bin", "-o", "m.onnx", *given, cwd=place), "m.bin is read")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "run/student", "-o", "run/student/model.onnx"), "lies in run/student, which is read"),
        (("export", "run/student", "-o", "run/student"), "run/student is a folder"),
        (("build", "m.onnx", "-o", "m.onnx"), "m.onnx is read"),
        (("build", "m.onnx", "-o", "photos"), "photos is a folder"),
        (("bench", "m.onnx", "-o", "notes"), "notes is a file"),
        (("deploy", "board", "none.zip", "-o", "notes"), "notes is a file"),
    ],
)
def test_other_commands_look_at_their_output_first(arguments: tuple[str, ...], words: str, place: Path) -> None:
    before = sha256_of(place)
    refused(command(*arguments, cwd=place), words)
    assert sha256_of(place) == before


def test_a_bundle_is_no_file_that_it_packs(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("report.json", "student.onnx", "teacher.onnx"):
        os.link(finished_run / name, tmp_path / "run" / name)
    for name in ("report.json", "student.onnx", "teacher.onnx"):
        refused(command("bundle", "run", "-o", f"run/{name}", cwd=tmp_path), f"run/{name} is read")
    assert sha256_of(tmp_path / "run" / "student.onnx") == sha256_of(finished_run / "student.onnx")


def test_a_place_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """By a stand-in: root, who runs most containers, may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, _mode: path != place / "photos")
    for refuse in (refuse_output_file, refuse_output_folder):
        with pytest.raises(InputError, match=r"cannot be written: no permission to write in .*photos"):
            refuse(place / "photos" / "new" / "one")
        refuse(place / "new" / "one")
    with pytest.raises(InputError, match="no permission to write in"):
        refuse_output_folder(place / "photos")


def test_a_folder_that_may_be_written_serves_where_the_one_around_it_may_not(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """Such as a mounted volume; but what takes an artefact's place is put beside it first."""
    monkeypatch.setattr(os, "access", lambda path, _mode: path != place)
    refuse_output_folder(place / "photos")
    refuse_output_file(place / "photos" / "m.onnx")
    (place / "empty").mkdir()
    with pytest.raises(InputError, match="no permission to write in"):
        refuse_foreign(place / "empty")


def test_functions_refuse_as_the_commands_do(place: Path) -> None:
    with pytest.raises(InputError, match="is read"):
        prune_artefact(place / "run" / "student", place / "link", goal=Ratio(0.5))
