"""Tuning for the table of methods: one budget for each, chosen on images that nothing is trained or reported on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import run_script
from small import environment_of

from iekd.errors import InputError, RunFolderError
from iekd.files import write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import table_tuning
from resident import Resident, held_out
from table_rows import parse_row

TABLE = Path(__file__).parent.parent / "benchmarks" / "cifar10_table.py"
SMOKE = ("--data", "digits", "--recipe", "smoke", "--teacher", "cifar_resnet20", "--precision", "no", "--threads", "1")


def resident(numbers: list[int]) -> Resident:
    """Images each of one number, which is their class as well."""
    images = np.array(numbers, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return Resident.load(images, np.array(numbers), torch.device("cpu"))


def test_held_out_images_are_not_those_that_train() -> None:
    everything, used = resident([*range(20), 3]), resident([3, 5, 7])  # 3 is there twice
    found = held_out(everything, used, 10)
    assert len(found) == len(set(found.targets.tolist())) == 10
    assert not set(found.targets.tolist()) & {3, 5, 7}
    assert found.targets.tolist() != sorted(found.targets.tolist())  # folders come in the order of their classes
    assert torch.equal(found.images.amax((1, 2, 3)).long(), found.targets)
    assert torch.equal(held_out(everything, used, 10).targets, found.targets)
    with pytest.raises(InputError, match=r"--held-out 18: 17 images are left"):
        held_out(everything, used, 18)


def test_every_method_has_the_same_budget() -> None:
    tried = [table_tuning.settings_of(method) for method in table_tuning.METHODS]
    assert {len(set(settings)) for settings in tried} == {3}
    for row in table_tuning.candidates():
        parse_row(row, SimpleNamespace(set=[]))  # type: ignore[arg-type]  # the one argument that it reads
    assert table_tuning.settings_of("at") == ["transfer_weight=1.56", "transfer_weight=15.6", "transfer_weight=46.8"]
    assert table_tuning.settings_of("ie-at") == ["inherit_weight=1.56", "inherit_weight=15.6", "inherit_weight=46.8"]


def keep(folder: Path, best: dict[str, str], held_out: int | None = 100) -> None:
    """Every candidate: 60 % at what ``best`` says, else 50."""
    (folder / "rows").mkdir(parents=True)
    for number, row in enumerate(table_tuning.candidates()):
        method, _, settings = row.partition("@")
        top1 = 60.0 if best.get(method) == settings else 50.0
        made = {"held_out": held_out}
        write_json(folder / "rows" / f"{number}.json", {"row": row, "seed": 0, "top1": top1, "made_under": made})


def test_what_is_chosen_becomes_the_rows_of_the_table(tmp_path: Path) -> None:
    best = {method: table_tuning.settings_of(method)[1] for method in table_tuning.METHODS}
    best |= {"kd": "kd_weight=3", "ie-at": "inherit_weight=46.8", "ie-dml": "inherit_weight=11.05"}
    keep(tmp_path, best)
    chosen = table_tuning.choose(tmp_path)
    assert {method: settings for method, (settings, _) in chosen.items()} == best
    rows = table_tuning.rows(chosen)
    assert {"ce", "kd@kd_weight=3", "at", "ft", "ie-at@inherit_weight=46.8", "ie-od", "dml"} <= set(rows)
    assert {"at+kd@kd_weight=3", "ie-at+kd@inherit_weight=46.8,kd_weight=3", "ie-ft+kd@kd_weight=3"} <= set(rows)
    assert "ie-dml@inherit_weight=11.05" in rows  # whose default is a tenth of ft's
    assert len(rows) == 1 + len(table_tuning.METHODS) + len(table_tuning.JOINED)
    assert "| `kd` | kd 0.3333, 1, 3 | 50.00, 50.00, **60.00** |" in table_tuning.render(chosen)


def test_rows_judged_on_the_test_images_choose_nothing(tmp_path: Path) -> None:
    keep(tmp_path / "test", {}, held_out=None)
    with pytest.raises(RunFolderError, match=r"kd@kd_weight=0.3333 in .* was judged on the test images"):
        table_tuning.choose(tmp_path / "test")
    with pytest.raises(RunFolderError, match=r"has no row kd@kd_weight=0.3333"):
        table_tuning.choose(tmp_path / "none")


def table(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_script(TABLE, "--out", str(out), *SMOKE, "--seeds", "0", *more, environment=environment_of())


@pytest.mark.slow
def test_a_tuning_judges_by_held_out_images_under_the_teacher_of_the_table(tmp_path: Path) -> None:
    without = table(tmp_path / "tuning", "--held-out", "100", "--rows", "kd")
    assert without.returncode == 2
    assert "has no teacher/ of another run" in without.stderr
    assert table(tmp_path / "table", "--rows", "kd").returncode == 0
    (tmp_path / "table" / "teacher").rename(tmp_path / "tuning" / "teacher")
    tuned = table(tmp_path / "tuning", "--held-out", "100", "--rows", "kd@kd_weight=3")
    assert tuned.returncode == 0, tuned.stderr
    row = "kd@kd_weight=3"
    assert 0 <= table_tuning.held_out_accuracy(tmp_path / "tuning", row) <= 100
    mixed = table(tmp_path / "tuning", "--rows", "kd@kd_weight=3")
    assert "held_out 100, now None" in mixed.stderr
