"""The comparison of training settings: each row is trained once, under answers that all share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import run_script
from small import environment_of, settings

from iekd.compress.config_input import make_config
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.errors import InputError

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from training_settings import read_arguments, render, settings_of

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "training_settings.py"


@pytest.mark.slow
def test_rows_are_trained_as_they_say_and_a_second_start_trains_nothing(tmp_path: Path) -> None:
    tiny = {"image_size": 16, "train_limit": 64, "val_limit": 40, "epochs": 1, "factor_epochs": 1}
    networks = {"teacher": "tiny_networks:teacher", "student": "tiny_networks:student"}
    config = make_config(settings(**tiny, **networks, out=str(tmp_path / "teacher")))
    run_stages(config, config.teacher, config.student, config.data, Observer(), until="teacher")

    def train() -> str:
        result = run_script(
            SCRIPT,
            *("--teacher", str(tmp_path / "teacher" / "teacher"), "--student", "tiny_networks:student"),
            *("--out", str(tmp_path / "out"), "--jobs", "1", "--seeds", "0", "--rows", "usual", "kd_weight=3,lr=0.01"),
            *("--", *(f"{name}={value}" for name, value in tiny.items() if name != "image_size"), "batch_size=32"),
            environment=environment_of(),
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    first = train()
    folders = {folder.name: folder for folder in (tmp_path / "out").iterdir()}
    assert set(folders) == {"usual-0", "kd_weight_3_lr_0.01-0", "shared-0"}
    assert "lr: 0.01" in (folders["kd_weight_3_lr_0.01-0"] / "config.yaml").read_text()
    assert list(folders["shared-0"].rglob("view0.safetensors"))
    assert "RESULT best=" in first.splitlines()[-1]
    trained = [folder / "student" / "model.safetensors" for name, folder in folders.items() if name != "shared-0"]
    stamps = [file.stat().st_mtime_ns for file in trained]

    assert train() == first
    assert stamps == [file.stat().st_mtime_ns for file in trained]


def test_a_row_is_the_settings_that_it_spells_out() -> None:
    assert settings_of("usual") == {}
    assert settings_of("kd_weight=3, lr=0.01") == {"kd_weight": "3", "lr": "0.01"}
    with pytest.raises(InputError, match="'kd_weight' is no setting"):
        settings_of("kd_weight")


def test_what_holds_for_all_rows_must_be_settings_too(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--teacher", "t", "--out", "o", "--", "epochs=4"]
    assert read_arguments(given).common == {"teacher": "t", "student": "mobilenetv2_100", "epochs": "4"}
    with pytest.raises(SystemExit):
        read_arguments([*given, "epochs"])
    assert "'epochs' is no setting" in capsys.readouterr().err


def test_rows_are_held_against_the_first_by_seed() -> None:
    table = render({"usual": {0: 60.0, 1: 62.0}, "lr=0.008": {0: 70.0, 1: 73.0}}, 0.9)

    assert "| `lr=0.008` | 70.00, 73.00 | 71.50 | +10.50 [" in table
    assert table.splitlines()[-1] == "RESULT best=lr=0.008 over_usual=+10.50"
