from __future__ import annotations

from pathlib import Path

import pytest

from iekd.compress.config import make_config, options, parse_latency, read_config_file, to_yaml
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
        ("tap", "last", "stage numbers"),
    ],
)
def test_bad_values_are_named(key: str, value: object, word: str) -> None:
    with pytest.raises(InputError) as caught:
        make_config({**BASE, key: value})
    assert word in str(caught.value)


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
    file.write_text("teacher: resnet18\nstudent: mobilenet\nteacher-epochs: 4\n")
    assert make_config(read_config_file(file)).teacher_epochs == 4


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "just words"])
def test_bad_yaml_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"run\.yaml"):
        read_config_file(file)


def test_every_setting_is_described() -> None:
    assert all(option.help.endswith(".") for option in options().values())
