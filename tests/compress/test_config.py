from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from iekd.compress.config import RunConfig, options
from iekd.compress.config_input import make_config, read_config_file, to_yaml
from iekd.compress.objectives.settings import ObjectiveSettings
from iekd.compress.run_objective import objective_settings
from iekd.compress.texts import parse_latency
from iekd.errors import InputError

BASE = {"teacher": "resnet18", "student": "mobilenet"}


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("2ms", 2), ("1500us", 1.5), ("1500µs", 1.5), ("0.002s", 2), (" 3 ms", 3), ("4", 4)],
)
def test_latency_takes_units(text: str, milliseconds: float) -> None:
    assert parse_latency(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "0", "ms", "nan", "inf"])
def test_latency_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError, match="duration"):
        parse_latency(text)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("epochs", 0, "--epochs"),
        ("epochs", "many", "--epochs"),
        ("val_fraction", 1.0, "--val-fraction"),
        ("inherit_fraction", -0.1, "--inherit-fraction"),
        ("batch_size", 0, "--batch-size"),
        ("target", "toaster", "Valid: cpu"),
        ("keep", "bets", "best"),
        ("epoch", 3, "Did you mean epochs"),
        ("tap", "-2,", "is not a list of stages"),
        ("teacher_tap", "", "--teacher-tap ''"),
        ("hidden_channels", 0, "--hidden-channels"),
        ("mean", "0.5,0.5", "--mean '0.5,0.5' is not a number for each"),
        ("mean", "grey", "--mean 'grey'"),
        ("std", "nan", "--std 'nan'"),
        ("std", "0.5,0,0.5", "above 0"),
    ],
)
def test_bad_values_are_named(key: str, value: object, word: str) -> None:
    with pytest.raises(InputError) as caught:
        make_config({**BASE, key: value})
    assert word in str(caught.value)


def test_taps_are_numbers_and_names_and_the_teachers_are_the_students_unless_given() -> None:
    config = make_config({**BASE, "tap": "-2, layer4,auto"})
    assert config.taps == config.teacher_taps == (-2, "layer4", "auto")
    assert make_config({**BASE, "tap": "layer4", "teacher_tap": "3"}).teacher_taps == (3,)
    assert make_config(BASE).taps == (-1,)


def test_every_setting_of_an_objective_is_a_setting_of_a_run() -> None:
    own, runs = ({field.name for field in dataclasses.fields(kind)} for kind in (ObjectiveSettings, RunConfig))
    assert own - runs == set()
    given = {"task_weight": 0.5, "factor_channels": 4, "hidden_channels": 8}
    made = objective_settings(make_config({**BASE, **given}))
    assert {key: getattr(made, key) for key in given} == given
    assert objective_settings(make_config(BASE)) == ObjectiveSettings()


def test_a_model_must_be_named() -> None:
    with pytest.raises(InputError, match="no student given"):
        make_config({"teacher": "resnet18"})


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = make_config({**BASE, "epochs": 3, "max_latency": "2ms", "skip_bad_images": True})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    assert make_config(read_config_file(file)) == config


def test_yaml_may_spell_settings_like_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("teacher: resnet18\nstudent: mobilenet\nteacher-epochs: 4\ntap: -2\nmax_latency: 3\n")
    config = make_config(read_config_file(file))
    assert config.teacher_epochs == 4
    assert (config.taps, config.max_latency_ms) == ((-2,), 3)


def test_normalisation_is_three_numbers_or_one_and_a_list_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("teacher: resnet18\nstudent: mobilenet\nmean: [0.1, 0.2, 0.3]\nstd: 0.5\ntap: [-2, layer4]\n")
    config = make_config(read_config_file(file))
    assert config.normalization == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert config.taps == (-2, "layer4")
    assert make_config(BASE).normalization == (None, None)


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "just words"])
def test_bad_yaml_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"run\.yaml"):
        read_config_file(file)


def test_every_setting_is_described() -> None:
    assert all(option.help.endswith(".") for option in options().values())
