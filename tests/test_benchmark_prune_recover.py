"""The comparison of recoveries after pruning: it runs through to its last line, and goes on where it stopped."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from processes import run_script
from small import environment_of

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS.parent / "benchmarks"))

from prune_recover import prune_once, read_arguments  # noqa: E402

from iekd.errors import InputError  # noqa: E402
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact  # noqa: E402
from iekd.models.preprocessing import Preprocessing  # noqa: E402
from iekd.models.registry import Architecture, build  # noqa: E402


def recover(folder: Path) -> list[str]:
    """What the benchmark says, line by line."""
    networks = ("--teacher", "tiny_networks:teacher", "--student", "tiny_networks:prunable", "--size", "16")
    training = ("--fewer", "0.5", "--steps", "2", "--base-epochs", "1", "--epochs", "1", "--train-limit", "64")
    flags = (*networks, *training, "--val-limit", "40", "--bench-seconds", "0.05")
    environment = environment_of(XDG_CACHE_HOME=str(folder / "cache"))
    result = run_script(
        TESTS.parent / "benchmarks" / "prune_recover.py", str(folder / "out"), *flags, environment=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_each_recovery_gets_its_row_and_a_second_start_trains_nothing(tmp_path: Path) -> None:
    first = recover(tmp_path)
    assert first[-1].startswith("RESULT iekd_over_kd=")
    assert " iekd_over_fine_tuning=" in first[-1]
    table = tmp_path / "out" / "prune_recover.csv"
    with open(table, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["recovery"] for row in rows] == ["none", "ie-kd", "kd", "fine-tuning"]
    whole, *pruned = (int(row["macs"]) for row in rows)
    assert len(set(pruned)) == 1, "the same cut for every recovery"
    assert pruned[0] <= 0.5 * whole
    assert all(float(row["milliseconds"]) > 0 for row in rows)
    weights = sorted((tmp_path / "out").rglob("model.safetensors"))
    trained = [file.stat().st_mtime_ns for file in weights]
    again = recover(tmp_path)
    assert again[-1] == first[-1]
    assert [file.stat().st_mtime_ns for file in weights] == trained


def test_what_was_pruned_otherwise_is_refused_and_not_taken_for_this(tmp_path: Path) -> None:
    architecture = Architecture("function", "tiny_networks:wide")
    whole = Artefact(build(architecture, 2, 16), architecture, ("a", "b"), Preprocessing(size=16), {})
    save_artefact(tmp_path / "whole", whole)

    def prune(share: float, *flags: str) -> None:
        prune_once(tmp_path / "whole", tmp_path / "cut", share, read_arguments([str(tmp_path), *flags]))

    prune(0.5)
    (first,) = load_artefact(tmp_path / "cut").facts["pruning"]
    prune(0.5)
    for share, flags, words in (
        (0.5, ("--criterion", "magnitude"), "its criterion was group-norm and is magnitude"),
        (0.5, ("--scope", "global"), "its scope was uniform and is global"),
        (0.5, ("--round-to", "4"), "its round_to was 8 and is 4"),
        (0.3, (), "its goal was"),
    ):
        with pytest.raises(InputError, match=words):
            prune(share, *flags)
    assert load_artefact(tmp_path / "cut").facts["pruning"] == [first]


def test_a_criterion_that_needs_batches_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["out", "--criterion", "taylor"])
    assert "invalid choice: 'taylor'" in capsys.readouterr().err
