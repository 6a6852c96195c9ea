"""The table of methods: what its rows hang on, so that none of other settings passes for one of these; taps."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file

from iekd.errors import InputError, RunFolderError
from iekd.files import write_json
from iekd.models.registry import build, resolve
from iekd.models.taps import Tapped

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import cifar10_table
import resident
from lane import Board
from table_bench import RECIPES, Bench
from table_cohort import run_side_by_side
from table_rows import Trained, parse_row, train_row
from table_settings import claim, refuse_other_rows, settings_of, weights_of_teacher
from table_teacher import TeacherAnswers, at_tap, keep_teacher

SMALL = dataclasses.replace(RECIPES["smoke"], batch=10, train_limit=None, val_limit=None, teacher_limit=None)


def given(out: Path, **changes: Any) -> argparse.Namespace:
    names = {"data": "digits", "teacher": "cifar_resnet20", "student": "cifar_resnet20", "size": None}
    flags = {
        "precision": "no",
        "set": [],
        "likeness": False,
        "unfinished": False,
        "compile": False,
        "lanes": 4,
        "held_out": None,
    }
    return argparse.Namespace(**{**names, **flags, "teacher_from": None, "verbose": False, "out": out, **changes})


def teach(out: Path, weights: bytes = b"one") -> None:
    (out / "teacher").mkdir(exist_ok=True)
    (out / "teacher" / "weights.safetensors").write_bytes(weights)


def keep_row(out: Path, row: str = "kd") -> Path:
    made = settings_of(given(out), SMALL, row, weights_of_teacher(out))
    (out / "rows").mkdir(exist_ok=True)
    write_json(out / "rows" / f"{row}-0.json", {"row": row, "seed": 0, "top1": 50.0, "made_under": made})
    return out / "rows" / f"{row}-0.json"


@pytest.mark.parametrize(
    ("changes", "recipe", "words"),
    [
        ({"set": ["inherit_weight=3"]}, {}, "settings , now inherit_weight=3"),
        ({"size": 64}, {}, "size None, now 64"),
        ({"compile": True}, {}, "compile False, now True"),
        ({"precision": "bf16"}, {}, "precision no, now bf16"),
        ({"data": "folder:cifar10"}, {}, "data digits, now folder:cifar10"),
        ({"teacher": "resnet50"}, {}, "teacher cifar_resnet20, now resnet50"),
        ({}, {"epochs": 9}, "epochs 1, now 9"),
        ({}, {"lr": 0.5, "milestones": (0.5,)}, r"lr 0.05, now 0.5; milestones \[\], now \[0.5\]"),
    ],
)
def test_a_row_of_other_settings_is_refused(
    changes: dict[str, Any], recipe: dict[str, Any], words: str, tmp_path: Path
) -> None:
    teach(tmp_path)
    keep_row(tmp_path)
    refuse_other_rows(given(tmp_path), dataclasses.replace(SMALL, teacher_epochs=77))  # its weights stand for that
    with pytest.raises(RunFolderError, match=f"kd-0.json was made under other settings: {words}.*another --out"):
        refuse_other_rows(given(tmp_path, **changes), dataclasses.replace(SMALL, **recipe))


def test_a_row_of_another_teacher_is_refused(tmp_path: Path) -> None:
    teach(tmp_path)
    keep_row(tmp_path, "ce")
    keep_row(tmp_path, "dml")
    teach(tmp_path, b"another")
    refuse_other_rows(given(tmp_path), SMALL)  # these two look at no teacher
    keep_row(tmp_path, "kd")
    teach(tmp_path, b"one")
    with pytest.raises(RunFolderError, match=r"kd-0.json.*teacher_weights"):
        refuse_other_rows(given(tmp_path), SMALL)


def test_looking_at_rows_again_needs_the_same_networks_and_images_alone(tmp_path: Path) -> None:
    teach(tmp_path)
    keep_row(tmp_path)
    for mode in ("likeness", "unfinished"):
        refuse_other_rows(given(tmp_path, precision="bf16", **{mode: True}), RECIPES["paper"])
        with pytest.raises(RunFolderError, match="size"):
            refuse_other_rows(given(tmp_path, size=64, **{mode: True}), SMALL)


def test_rows_of_older_versions_are_taken_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = keep_row(tmp_path)
    write_json(file, {"row": "kd", "seed": 0, "top1": 50.0, "epochs": 1, "settings": ""})
    refuse_other_rows(given(tmp_path), SMALL)
    assert "made by an older version" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match="epochs 1, now 2"):
        refuse_other_rows(given(tmp_path), dataclasses.replace(SMALL, epochs=2))


@pytest.mark.parametrize("said", [{}, {"reads": "stages"}])
def test_a_row_of_od_that_was_read_behind_the_activation_is_refused(said: dict[str, str], tmp_path: Path) -> None:
    teach(tmp_path)
    for row in ("at+kd", "ie-od+kd@inherit_weight=2"):
        file = keep_row(tmp_path, row)
        found = json.loads(file.read_text())
        made = {key: value for key, value in found["made_under"].items() if key != "reads"}
        write_json(file, {**found, "made_under": {**made, **said}})
    with pytest.raises(RunFolderError, match=r"ie-od\+kd.*made under other settings: reads stages, now before:"):
        refuse_other_rows(given(tmp_path), SMALL)


def test_what_is_left_of_a_training_goes_on_under_its_own_settings_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        return settings_of(given(tmp_path, **changes), SMALL, "ie-ft-0", "none")

    claim(tmp_path / "a", settings())
    claim(tmp_path / "a", settings(precision="bf16"))  # nothing was left
    (tmp_path / "a" / "last.pt").touch()
    claim(tmp_path / "a", settings(precision="bf16"))
    with pytest.raises(RunFolderError, match="a was made under other settings: precision bf16, now no"):
        claim(tmp_path / "a", settings())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "lane.safetensors").touch()
    assert not capsys.readouterr().out
    claim(tmp_path / "old", settings())
    assert "left by an older version" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("ie-fit", "unknown objective 'ie-fit'"),
        ("kd@temprature=2", "unknown setting 'temprature'"),
        ("ce@kd_weight=2", "ce is the student alone"),
    ],
)
def test_a_row_that_cannot_be_is_told_before_any_is_trained(row: str, words: str, tmp_path: Path) -> None:
    wanted = given(tmp_path / "table", rows=["ce", row, "ie-dml", "dml@kd_weight=2", "dkd@logit_options=beta=8"])
    with pytest.raises(InputError, match=words):
        cifar10_table.run(wanted)
    assert not (tmp_path / "table").exists()


def test_a_refusal_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_row(tmp_path, "ce")
    monkeypatch.setattr(sys, "argv", ["cifar10_table.py", "--data", "digits", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cifar10_table.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "ce-0.json was made under other settings" in told.err
    assert not told.out


def test_images_are_kept_by_the_name_of_their_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data(name: str, **_: object) -> SimpleNamespace:
        source = [(Image.new("RGB", (8, 8), name), 0)]
        return SimpleNamespace(train=source, val=source)

    monkeypatch.setattr(resident, "load_data", load_data)
    found = [resident.load_split(name, tmp_path, None, None, torch.device("cpu"))[0] for name in ("red", "blue", "red")]
    assert torch.equal(found[0].images, found[2].images)
    assert not torch.equal(found[0].images, found[1].images)


def test_a_row_says_its_settings_by_their_types_and_its_tap(tmp_path: Path) -> None:
    row = parse_row("ie-ft+kd@factor_channels=16,inherit_weight=2,explore_margin=1e-1,split=random", given(tmp_path))
    assert row.settings.factor_channels == 16
    assert type(row.settings.factor_channels) is int
    assert type(row.settings.inherit_weight) is float
    assert (row.settings.explore_margin, row.settings.split, row.tap) == (0.1, "random", -1)
    taps = [parse_row(f"ie-ft@tap={tap}", given(tmp_path, set=["tap=0"])).tap for tap in ("layer2", "1", "-2")]
    assert taps == ["layer2", 1, -2]
    with pytest.raises(InputError, match=r"unknown setting 'factor_chanels'.*factor_channels"):
        parse_row("ft@factor_chanels=16", given(tmp_path))
    with pytest.raises(InputError, match="factor_channels=many is not of type int"):
        parse_row("ft@factor_channels=many", given(tmp_path))


def bench(out: Path) -> Bench:
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (20, 8, 8, 3), np.uint8)
    data = resident.Resident.load(images, np.arange(20) % 10, torch.device("cpu"))
    return Bench(given(out), SMALL, Accelerator(cpu=True), data, data, data, out)


TAPPED = "ie-ft+kd@tap=stages.1,factor_channels=4"


def test_a_row_taps_another_stage(tmp_path: Path) -> None:
    own = bench(tmp_path)
    teacher = own.tapped("cifar_resnet20", 0, "teacher").eval().requires_grad_(False)

    def train() -> Trained:
        return train_row(own, TAPPED, 0, lambda tap: TeacherAnswers(own, at_tap(teacher, tap, 8)))

    assert train().facts["pull_inherit"] > 0
    assert (tmp_path / "checkpoints" / "factors-ft@factor_channels=4,tap=stages.1" / "last.pt").exists()
    own.arguments.set = ["seed=1"]
    with pytest.raises(RunFolderError, match=r"stages.1,factor_channels=4-0 was made under other settings"):
        train()


def test_rows_that_tap_different_stages_train_side_by_side(tmp_path: Path) -> None:
    own, kept = bench(tmp_path), {}
    keep_teacher(own, own.tapped("cifar_resnet20", 0, "teacher"))

    def keep(row: str, seed: int, trained: Trained, seconds: float) -> None:
        kept[row] = trained.facts

    run_side_by_side(own, [("ft", 0), ("od", 0), (TAPPED, 0), ("kd@tap=0", 0), ("dml@tap=0", 0)], keep)
    assert set(kept) == {"ft", "od", TAPPED, "kd@tap=0", "dml@tap=0"}
    assert kept[TAPPED]["pull_inherit"] > 0
    assert kept["ft"]["pull_transfer"] > 0
    own.arguments.precision = "bf16"
    with pytest.raises(RunFolderError, match="factors-ft was made under other settings: precision no, now bf16"):
        run_side_by_side(own, [("ft", 1)], keep)


def test_a_lane_reads_the_map_that_it_asks_for() -> None:
    torch.manual_seed(0)
    data = bench(Path()).train
    teacher = Tapped(build(resolve("cifar_resnet20"), 10, 8), (0, 2), 8).eval()
    board = Board(data, teacher, lambda: torch.autocast("cpu", torch.bfloat16, enabled=False))
    board.show(3)
    some = torch.tensor([7, 2])
    with torch.no_grad():
        expected = teacher(data.view(torch.arange(20), 3))
    for tap in (0, 1):
        seen = board.read(some, tap).teacher
        assert seen is not None
        assert torch.allclose(seen.logits, expected.logits[some], atol=1e-5)
        assert len(seen.taps) == 1
        assert torch.allclose(seen.taps[0], expected.taps[tap][some], atol=1e-2)


def test_what_is_unfinished_is_tabled_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = bench(tmp_path)
    network = own.tapped("cifar_resnet20", 3, "student").network
    state = {f"task.student.network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for name in ("ie-ft+kd-0", "kd-0", "ce-0"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        save_file({**state, "step": torch.tensor([4])}, tmp_path / "checkpoints" / name / "lane.safetensors")
    keep_row(tmp_path, "ce")  # finished since
    monkeypatch.setattr(cifar10_table, "load_split", lambda *_: (own.train, own.val))
    words = ["--data", "digits", "--out", str(tmp_path), "--recipe", "smoke", "--precision", "no", "--unfinished"]
    monkeypatch.setattr(sys, "argv", ["cifar10_table.py", "--teacher", "cifar_resnet20", *words])
    monkeypatch.setitem(cifar10_table.RECIPES, "smoke", dataclasses.replace(SMALL, epochs=5))
    cifar10_table.main()
    told = capsys.readouterr().out
    assert "Not finished, scored as they stand: ie-ft+kd-0 (2 epochs), kd-0 (2 epochs)." in told
    assert told.splitlines()[-1].startswith("RESULT best_ie=ie-ft+kd gain_points=")
    assert told.splitlines()[-1].endswith(" unfinished=2")
    assert [json.loads(file.read_text())["top1"] for file in (tmp_path / "rows").glob("*.json")] == [50.0]
