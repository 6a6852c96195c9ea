"""The table of the libraries' graphs, on a small network with one library's file."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from quantization_samples import labelled, write

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import quantiser_graphs
from quantisers import parser

from iekd.errors import InputError


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `quantisers.py --until libraries` leaves of one student."""
    folder = tmp_path / "small"
    (folder / "run").mkdir(parents=True)
    source = write(folder / "run" / "student.onnx")
    images, labels = labelled(source, 96)
    shutil.copy(source, folder / "library.onnx")
    (folder / "libraries.json").write_text(
        json.dumps({"files": {"library": "library.onnx", "own": "own.xml"}, "missing": {}})
    )
    data = SimpleNamespace(
        train=(images[:48], labels[:48]), held_out=(images[48:72], labels[48:72]), val=(images[72:], labels[72:])
    )
    monkeypatch.setattr(quantiser_graphs, "Images", lambda *_given: data)
    return tmp_path


def given(out: Path) -> argparse.Namespace:
    return parser().parse_args(["--out", str(out), "--students", "small", "--threads", "1"])


def test_ours_is_told_beside_the_libraries_onnx_files(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = quantiser_graphs.rows_of("small", given(out))
    told = {row["file"]: row for row in rows}
    assert list(told) == ["float32", "ours, TensorRT", "ours, x86", "library"]
    assert told["float32"]["accuracy"] == "100.00%", "the labels are its own answers"
    board, desk = told["ours, TensorRT"], told["ours, x86"]
    assert (board["TensorRT"], board["activations"], board["zero points"]) == ("accepted", "int8", "all 0")
    assert (board["MACs in 8 bits"], board["before activation"]) == ("100.0%", 0)
    assert board["additions: one / both of all"] == "1 / 0 of 1"
    assert desk["activations"] == "uint8"
    assert desk["problems"]
    assert desk["TensorRT"] == f"refused ({len(desk['problems'])})"
    assert min(float(board["dB"]), float(desk["dB"])) > 15
    quantiser_graphs.write_csv(rows, out / "graphs.csv")
    with (out / "graphs.csv").open(encoding="utf-8") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == list(told)
    quantiser_graphs.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "RESULT accepted: ours-TensorRT=1/1 ours-x86=0/1 library=0/1"
    assert f"small, ours, x86: {desk['problems'][0]}" in lines


def test_what_was_measured_is_not_made_again(out: Path) -> None:
    measured = out / "small" / "int8-x86-onnxruntime.onnx"
    measured.write_bytes((out / "small" / "library.onnx").read_bytes())
    rows = quantiser_graphs.rows_of("small", given(out))
    assert next(row for row in rows if row["file"] == "ours, x86")["Q / DQ"] == ""
    assert not (out / "small" / "int8-x86-onnxruntime-alone.onnx").exists()


def test_students_without_the_libraries_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--until libraries first"):
        quantiser_graphs.rows_of("small", given(tmp_path))
