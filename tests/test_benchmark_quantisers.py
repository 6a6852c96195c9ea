"""How the comparison of quantisers reads its own table."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import quantisers
from quantiser_noise import luckiest
from quantiser_table import gaps, measurably_more_accurate, points_behind

from iekd.files import write_json


def rows(backend: str, **files: tuple[float, float]) -> list[dict[str, Any]]:
    """Points lost and milliseconds by file."""
    return [
        {"backend": backend, "file": file, "drop_points": drop, "ours_over_it": {"value": files["ours"][1] / ms}}
        for file, (drop, ms) in files.items()
    ]


def test_a_fast_file_that_lost_its_accuracy_counts_in_one_reading_alone() -> None:
    found = gaps(rows("a", float32=(0, 9), ours=(0.2, 2), exact=(0.1, 4), lossy=(30, 1)))
    assert math.isclose(found["drop_gap"], 0.1)
    assert (found["latency_ratio"], found["latency_ratio_of_accurate"]) == (2, 0.5)


def test_the_worst_backend_counts() -> None:
    found = gaps([*rows("a", ours=(0, 3), other=(0, 2)), *rows("b", ours=(1, 1), other=(-1, 2))])
    assert found == {"drop_gap": 2, "latency_ratio": 1.5, "latency_ratio_of_accurate": 1.5}


def test_a_ratio_from_fresh_processes_counts_before_that_of_one() -> None:
    table = rows("a", ours=(0, 3), other=(0, 2), slow=(0, 10))
    table[1]["repeated"] = {"value": 1.01}
    assert gaps(table)["latency_ratio"] == 1.01


def test_a_file_is_called_more_accurate_only_where_the_images_show_it() -> None:
    ours = np.arange(10_000) % 10 > 0  # 90 %
    lucky, better = ours.copy(), ours.copy()
    lucky[:200:10], lucky[1:60:10] = True, False  # right where ours errs 20 times, wrong where it does not 6 times
    better[:600:10] = True  # 60 images, 0.6 points
    table = rows("a", ours=(0, 1), lucky=(0, 1), better=(0, 1))
    for row, right in zip(table, (ours, lucky, better), strict=True):
        row["ours_behind_points"] = points_behind(ours, right).model_dump()
    assert math.isclose(table[1]["ours_behind_points"]["value"], 0.14)
    assert math.isclose(table[2]["ours_behind_points"]["value"], 0.60)
    half = 100 * 1.96 * math.sqrt(0.006 * 0.994 / 10_000)
    assert math.isclose(table[2]["ours_behind_points"]["low"], 0.60 - half)
    assert measurably_more_accurate(table) == ["better on a"]


@pytest.mark.parametrize(("given", "epochs"), [([], {"a": 40, "b": None}), (["--epochs", "3"], {"a": 3, "b": 3})])
def test_a_student_that_learns_slowly_has_epochs_of_its_own(
    given: list[str], epochs: dict[str, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(quantisers, "EPOCHS", {"a": 40})
    monkeypatch.setattr(quantisers, "make_config", lambda values: asked.append(values) or SimpleNamespace(**values))
    monkeypatch.setattr(quantisers, "run_stages", lambda *_given, **_named: None)
    for student in epochs:
        quantisers.train("teacher", student, quantisers.parser().parse_args(given), Path("run"), until="export")
    assert {values["student"]: values["epochs"] for values in asked} == epochs


def test_a_finished_result_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantisers.py", "--students", "one", "--out", str(tmp_path), "--seed", "1"]
    (tmp_path / "one").mkdir()
    under = quantisers.made_under(quantisers.parser().parse_args(words[1:]))
    write_json(tmp_path / "one" / "result.json", {"student": "one", "rows": [], "made_under": under})
    shown: list[Any] = []
    monkeypatch.setattr(quantisers, "show", shown.append)
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "9"])
    quantisers.main()
    assert [student["student"] for student in shown[0]] == ["one"]
    monkeypatch.setattr(sys, "argv", [*words, "--threads", "1"])
    with pytest.raises(SystemExit) as ended:
        quantisers.main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert "result.json was made under other settings: threads 2, now 1." in told.err
    assert told.err.count("\n") == 1
    write_json(tmp_path / "one" / "result.json", {"student": "one", "rows": []})
    quantisers.main()
    assert "made by an older version" in capsys.readouterr().out


def test_the_luckiest_of_equal_files_is_ahead_by_what_their_spread_says() -> None:
    assert luckiest([50.0] * 6) == 0
    assert math.isclose(luckiest([50.0, 50.0, 50.0, 50.0, 50.0, 50.6]), (5 * 0.6 - 0.6) / 6)
    normal = np.random.default_rng(0).normal(50, 0.1, (500, 6))
    assert math.isclose(np.mean([luckiest(list(row)) for row in normal]), 0.1163, abs_tol=0.01)  # E[max of 5], sd 0.1
