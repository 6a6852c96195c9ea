"""docs/add-an-objective.md, executed as it stands."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import objective_table
import pytest
import torch
from typer.testing import CliRunner

import iekd
from iekd.compress.cli import app
from iekd.compress.objectives import catalogue

sys.path.insert(0, str(Path(__file__).parent / "compress"))
import test_objectives_lift as lifted
import test_objectives_table as every
import test_objectives_train as whole
import test_objectives_transformers as transformers

PAGE = Path(__file__).parent.parent / "docs" / "add-an-objective.md"
MODULE = "iekd.compress.objectives.hint"


@pytest.fixture(scope="module")
def row() -> Iterator[objective_table.Row]:
    """The page's file as a module, its line in the catalogue, its row."""
    file, line, row = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = types.ModuleType(MODULE)
    exec(compile(file, "hint.py", "exec"), module.__dict__)
    sys.modules[MODULE] = module
    catalogue.register(eval(line, vars(catalogue)))
    yield eval(row, vars(objective_table))
    for name in ("hint", "ie-hint"):
        del catalogue.OBJECTIVES[name]
    del sys.modules[MODULE]


@pytest.mark.parametrize("lifted", [True, False])
def test_the_new_objective_passes_what_the_table_asks(row: objective_table.Row, lifted: bool) -> None:
    if not lifted:
        row = objective_table.with_plain((row,))[-1]
        assert row.name == "hint"
    every.test_terms_are_named_and_reach_student_and_heads(row)
    every.test_training_lowers_its_own_terms_and_leaves_the_teachers_side_alone(row)
    every.test_the_state_goes_round_through_a_file(row)
    every.test_pretraining_reports_finite_losses_that_fall(row)
    every.test_records_are_compact_and_survive_half_precision(row)
    if lifted:
        every.test_exploration_is_bounded(row)
    every.test_bf16_is_close_to_float32(row)
    for images, classes in every.batches_and_classes(row):
        for dtype in (torch.float32, torch.bfloat16):
            every.test_small_batches_two_classes_and_bf16(row, images, classes, dtype)


def test_its_one_row_completes_the_table(row: objective_table.Row, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        every.test_the_table_has_every_objective()
    monkeypatch.setattr(every, "TABLE", objective_table.with_plain((*every.TABLE, row)))
    every.test_the_table_has_every_objective()


@pytest.mark.usefixtures("row")
def test_its_lift_reduces_to_the_plain_transfer_and_to_exploration_alone() -> None:
    lifted.test_a_fraction_of_one_is_exactly_the_plain_transfer("hint", "random", {})
    lifted.test_a_fraction_of_zero_is_exactly_exploration_alone("hint", "random")


@pytest.mark.usefixtures("row")
@pytest.mark.parametrize("role", transformers.PAIRS)
@pytest.mark.parametrize("name", ["hint", "ie-hint"])
def test_transformers_teach_and_learn_by_it(name: str, role: str) -> None:
    transformers.test_every_transfer_moves_a_transformer_and_learns_from_one(name, role)


@pytest.mark.usefixtures("row")
def test_it_is_listed() -> None:
    listed = CliRunner().invoke(app, ["objectives"]).output
    assert {"hint", "ie-hint"} <= set(re.findall(r"[a-z-]+", listed))


def test_the_new_objective_trains_resumes_and_exports(row: objective_table.Row, tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    iekd.run(**whole.tiny(out, objective="ce", epochs=1))
    whole.test_it_trains_resumes_and_exports(row, str(out / "teacher"), tmp_path)
