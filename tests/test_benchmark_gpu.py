"""The benchmark of a GPU, without one: PyTorch and ONNX Runtime run on the CPU, TensorRT is a double or missing."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from engine_doubles import Workshop

from iekd.deploy.device.engine_cache import Machine

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu

pytest.importorskip("onnxconverter_common", reason="needs the extra `quantize`")

MODEL = "mobilenetv3_small_050"
HERE = {"torch-fp32", "onnxruntime"}
ENGINES = {"tensorrt", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8", "tensorrt-fp8"}
CUDA = {"onnxruntime-cuda", "onnxruntime-cuda-fp16", "onnxruntime-tensorrt"}


def rows(out: Path, monkeypatch: pytest.MonkeyPatch, **given: str) -> dict[str, dict[str, str]]:
    """What the script wrote, by row."""
    given = {"out": str(out), "models": MODEL, "size": "32", "seconds": "0.02", "device": "cpu", **given}
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", *(word for key, value in given.items() for word in (f"--{key}", value))]
    )
    gpu.main()
    with (out / "gpu.csv").open(newline="") as handle:
        return {row["row"]: row for row in csv.DictReader(handle)}


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("without_tensorrt")
def test_each_row_is_measured_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(tmp_path, monkeypatch)
    assert set(found) == HERE | ENGINES | CUDA
    for name in ENGINES:
        assert "TensorRT cannot be imported" in found[name]["note"]
    measured = {name for name, row in found.items() if row["median_ms"]}
    assert measured >= HERE
    assert all(bool(row["median_ms"]) != bool(row["note"]) for row in found.values())
    assert not list(tmp_path.rglob("model-*.onnx")), "nothing is converted for a runtime that is not here"
    assert json.loads((tmp_path / "machine.json").read_text())["device"]


def test_engines_are_measured_in_each_precision_of_the_project_s_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop()
    shop.install(monkeypatch)
    found = rows(tmp_path, monkeypatch, batch="9")
    fp8 = found.pop("tensorrt-fp8")
    assert "fp8 needs a GPU of SM 8.9 or later" in fp8["note"], "asked before anything is converted"
    for name in ENGINES - {"tensorrt-fp8"}:
        assert float(found[name]["median_ms"]) > 0, found[name]
        assert found[name]["batch"] == "9"
        assert (tmp_path / MODEL / f"latency-{name}.npz").is_file()
    assert shop.built == ["model", "model-fp16", "model-bf16", "model-int8-tensorrt"]
    assert {settings.batch for settings in shop.settings} == {(1, 9, 9)}


def test_a_file_of_an_earlier_run_is_not_taken_for_this_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / MODEL
    folder.mkdir()
    (folder / "model-fp16.onnx").write_bytes(b"of another size")
    shop = Workshop()
    shop.machine = Machine("10.16.1", "Thor", "11.0", "a driver", "Linux aarch64")
    shop.install(monkeypatch)
    found = rows(tmp_path, monkeypatch)
    assert float(found["tensorrt-fp16"]["median_ms"]) > 0
    fp8 = found["tensorrt-fp8"]
    assert "nvidia-modelopt" in fp8["note"] if fp8["note"] else float(fp8["median_ms"]) > 0
