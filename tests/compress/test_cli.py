"""The command line as a user meets it: each test starts a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from small import PROGRAM, arguments, command, environment_of, refused

from iekd.compress import cli
from iekd.compress.search_command import search_instead
from iekd.files import sha256_of


def test_light_commands_do_not_load_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom iekd.compress.cli import app\n"
        "for args in (['--help'], ['models'], ['objectives'], ['doctor'], ['--version'], ['distill', '--help']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0, args\n"
        "big = {'torch', 'timm', 'onnx', 'onnxruntime', 'sklearn', 'matplotlib'}\n"
        "heavy = sorted(big & sys.modules.keys())\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_help_names_every_setting() -> None:
    from iekd.compress.config import flag, options

    text = command("--help").stdout
    assert [name for name in options() if flag(name) not in text] == []


def test_objectives_are_listed_with_paper_and_the_defaults_that_they_read() -> None:
    from iekd.compress.listings import objectives_table
    from iekd.compress.objectives.catalogue import describe_objectives

    names, _, defaults, sources = ([*column.cells] for column in objectives_table().columns)
    assert names == [entry.name for entry in describe_objectives()]
    assert [name for name, source in zip(names, sources, strict=True) if source == "[dim][/]"] == ["ce"]
    shown = dict(zip(names, defaults, strict=True))
    assert shown["ft"] == "--transfer-weight 11.05"
    assert shown["ie-ft"] == "--inherit-weight 11.05\n--explore-weight 1.105"
    assert shown["ie-dml"].endswith("--inherit-weight 1.105\n--explore-weight 1.105")
    assert shown["kd"] == "--kd-weight 1\n--temperature 4"


@pytest.mark.slow
def test_a_run_by_flags_resumes_and_judges(tmp_path: Path) -> None:
    flags = arguments(epochs=1, out="run")
    first = command(*flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "KEPT" in first.stdout
    assert "run/report.html" in first.stdout
    weights = sha256_of(tmp_path / "run" / "student")
    again = command(*flags, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("from the earlier run") == 5
    strict = command(*arguments(epochs=1, out="run", max_latency="1us"), cwd=tmp_path)
    assert strict.returncode == 1
    assert "MISSED" in strict.stdout
    assert json.loads((tmp_path / "run" / "report.json").read_text())["verdict"]["kept"] is False
    assert sha256_of(tmp_path / "run" / "student") == weights
    other = command(*arguments(epochs=2, out="run"), cwd=tmp_path)
    refused(other, "--epochs was 1 and is 2", "--out")
    assert sha256_of(tmp_path / "run" / "student") == weights


def test_a_miss_names_the_search_for_another_student(finished_run: Path, tmp_path: Path) -> None:
    """The command as it stands parses, and asks for the limits that were missed."""
    pytest.importorskip("optuna", reason="needs the extra `search`")
    shutil.copytree(finished_run, tmp_path / "run")
    given = arguments(out="run", max_latency="1us", min_retained=0.02)
    missed = command(*given, cwd=tmp_path)
    assert missed.returncode == 1, missed.stderr
    words = shlex.split(missed.stdout.splitlines()[-1])
    assert words[:2] == ["iekd-compress", "search"]
    named, asked = (dict(zip(flags[::2], flags[1::2], strict=True)) for flags in (words[2:], given))
    assert named == {name: value for name, value in asked.items() if name != "--out"}
    refused(command(*words[1:], "--trials", "0", cwd=tmp_path), "--trials 0")
    kept = command(*arguments(out="run"), cwd=tmp_path)
    assert kept.returncode == 0
    assert "search" not in kept.stdout


def test_the_search_that_a_miss_names_fits_the_run() -> None:
    def named(given: dict[str, Any], **config: Any) -> str:
        settings = {"objective": "ie-ft+kd", "target": "cpu", **config}
        report = SimpleNamespace(config=settings, verdict=SimpleNamespace(min_retained=0.97))
        return search_instead(given, report)

    given = {"teacher": "resnet50", "student": "mobilenet", "max_latency": "1.5 ms", "prune": 0.5, "out": "mine"}
    begin = "iekd-compress search --teacher resnet50 --student mobilenet"
    assert named(given) == f"{begin} --max-latency '1.5 ms' --min-retained 0.97"
    assert named(given, target="jetson-orin") == f"{begin} --min-retained 0.97"
    assert named(given, objective="dml") == ""
    flags = {"adapt_head": True, "skip_bad_images": False, "min_retained": 0.97}
    assert named(flags) == "iekd-compress search --adapt-head --no-skip-bad-images --min-retained 0.97"


@pytest.mark.slow
def test_stages_one_by_one_on_photographs(small_folder: Path, tmp_path: Path) -> None:
    """teacher, distill, and then the main command goes on; a configuration file stands for the flags."""
    values = {"data": f"folder:{small_folder}", "train_limit": None, "val_limit": None, "batch_size": 8, "epochs": 1}
    flags = arguments(**values, out="run")
    assert command("teacher", *flags, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "run" / "student").exists()
    assert command("distill", *flags, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "run" / "student.onnx").exists()
    pairs = zip(flags[::2], flags[1::2], strict=True)
    (tmp_path / "run.yaml").write_text("".join(f"{name[2:]}: {value}\n" for name, value in pairs))
    whole = command("--config", "run.yaml", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("from the earlier run") == 3
    single = command("export", "run/student", "-o", "own.onnx", cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    table = command("bench", "run", "own.onnx", "--seconds", "0.2", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert len(json.loads((tmp_path / "bench" / "bench.json").read_text())["models"]) == 3
    picture = next((small_folder / "val" / "dark").iterdir())
    answer = command("predict", "own.onnx", str(picture), cwd=tmp_path)
    assert answer.stdout.split("\t")[1] in ("dark", "light")
    (tmp_path / "run" / "report.html").unlink()
    assert command("report", "run", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "resnet5o"}, ["unknown model 'resnet5o'", "resnet50"]),
        ({"student": "mobilnet"}, ["unknown model 'mobilnet'", "mobilenet"]),
        ({"teacher": "./nowhere"}, ["no artefact at './nowhere'"]),
        ({"teacher": "nowhere.at_all:build"}, ["cannot import 'nowhere.at_all'"]),
        ({"student": "iekd.errors:unknown_nam"}, ["unknown_name"]),
        ({"data": "digit"}, ["unknown data set 'digit'", "digits"]),
        ({"data": "folder:nowhere"}, ["nowhere"]),
        ({"teacher_weights": "nowhere.pth"}, ["no weights at 'nowhere.pth'"]),
        ({"batch_size": 500}, ["500", "128"]),
        ({"objective": "ie-fx"}, ["unknown objective 'ie-fx'", "Did you mean ie-ft", "dkd, dist", "at, ft", "dml"]),
        ({"objective": "relational"}, ["unknown objective 'relational'", "dkd, dist", "(features)", "joined by +"]),
        ({"tap": "9"}, ["has no tap 9", "Valid: 0 to"]),
        ({"max_latency": "soon"}, ["--max-latency 'soon'"]),
        ({"epochs": "0"}, ["--epochs 0"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, changes: dict[str, str], words: list[str]) -> None:
    refused(command(*arguments(out="run", **changes), cwd=tmp_path), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inherit_fraction": 0.0005}, ["--inherit-fraction 0.0005 of", "leaves a part empty"]),
        (
            {"objective": "kd", "teacher": "of ten classes"},
            ["was trained for 10 classes", "the data has 2 (dark, light"],
        ),
        ({"objective": "dkd"}, ["dkd needs 3 classes or more, the data has 2", "Use kd"]),
        ({"objective": "dml", "student": None}, ["no student given", "--student"]),
    ],
)
def test_what_an_objective_cannot_be_given_is_one_line(
    changes: dict[str, str | None], words: list[str], small_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    two_classes = {"data": f"folder:{small_folder}", "train_limit": None, "val_limit": None, "batch_size": 4}
    if "teacher" in changes:
        changes = {**changes, "teacher": str(finished_run / "teacher"), "teacher_weights": "auto"}
    refused(command(*arguments(**{**two_classes, **changes}, out="run"), cwd=tmp_path), *words)


def test_weights_of_another_network_or_class_count(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), tmp_path / "other.pth")
    torch.save(timm.create_model("resnet10t", num_classes=4).state_dict(), tmp_path / "four.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 40)
    refused(command(*arguments(teacher_weights="other.pth"), cwd=tmp_path), "another architecture", "other.pth")
    refused(command(*arguments(teacher_weights="four.pth"), cwd=tmp_path), "4 classes", "has 10", "--adapt-head")
    refused(command(*arguments(teacher_weights="broken.safetensors"), cwd=tmp_path), "broken.safetensors")


def test_bad_folders(small_folder: Path, tmp_path: Path) -> None:
    def flags(path: Path) -> list[str]:
        return arguments(data=f"folder:{path}", train_limit=None, val_limit=None, batch_size=4, out="run")

    (tmp_path / "empty").mkdir()
    refused(command(*flags(tmp_path / "empty"), cwd=tmp_path), "no images", "empty")
    refused(command(*flags(small_folder / "train"), cwd=tmp_path), "--val-fraction")
    bad = small_folder / "train" / "dark" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    refused(command(*flags(small_folder), cwd=tmp_path), "dark/0.jpg", "--skip-bad-images")
    (small_folder / "val" / "purple").mkdir()
    Image.new("RGB", (40, 40)).save(small_folder / "val" / "purple" / "0.png")
    refused(command(*flags(small_folder), cwd=tmp_path), "purple", "val/")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = command(*arguments(teacher="resnet5o"), "--debug", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_a_defect_does_not_pass_for_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("never thought of")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 70
    assert "RuntimeError: never thought of" in capsys.readouterr().err


def test_an_interruption_says_what_is_kept(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [*PROGRAM, *arguments()],
        cwd=tmp_path,
        env=environment_of(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listening,
    )
    assert started.stdout is not None
    assert started.stdout.readline(), "it has begun"
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130
    assert told.strip().endswith("a run goes on from there when its command is given again.")
    assert "Traceback" not in told


def listening() -> None:
    """What is started from a shell's background ignores interruptions, and so do its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("words", [("objectives",), ("--version",)])
def test_a_reader_that_has_gone_is_no_verdict(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        found = subprocess.run(
            [*PROGRAM, *words], stdout=gone, stderr=subprocess.PIPE, env=environment_of(PYTHONUNBUFFERED="1")
        )
    assert (found.returncode, found.stderr) == (141, b"")


def test_options_before_a_subcommand_are_not_lost_in_silence() -> None:
    refused(command("--epochs", "3", "doctor"), "--epochs stands before 'doctor'")


def test_a_missing_gpu_is_a_missing_part(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused(command(*arguments(device="cuda"), cwd=tmp_path), "no CUDA device", "doctor", code=3)


def test_predict_refuses_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    refused(command("predict", "x.onnx", "y.jpg", cwd=tmp_path), "x.onnx")


def test_the_other_modes_of_measuring(finished_run: Path, tmp_path: Path) -> None:
    given = ("--data", "digits", "--seconds", "0.2", "--streams", "2", "--repeat", "2", "--publishable", "0.2")
    found = command("bench", str(finished_run), *given, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    for words in ("images/s", "single stream p90, ms", "ratio of medians", "teacher / student"):
        assert words in found.stdout
    assert (tmp_path / "bench" / "repeat" / "repeat.json").exists()
    three = command("bench", str(finished_run), str(finished_run / "student.onnx"), "--repeat", "2", cwd=tmp_path)
    assert three.returncode == 2
    assert "two files, not of 3" in three.stderr
