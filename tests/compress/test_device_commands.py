"""The commands around the device, started as a user starts them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import typer
from rich.console import Console
from small import command
from typer.testing import CliRunner


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to write into."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_run_travels_as_a_bundle_and_comes_back_into_its_report(own_run: Path, tmp_path: Path) -> None:
    made = command("bundle", str(own_run), "-o", "student.zip", "--images", "40", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "fp32; 40 images" in made.stdout
    with zipfile.ZipFile(tmp_path / "student.zip") as archive:
        archive.extractall(tmp_path / "board")
    (place,) = (tmp_path / "board").iterdir()
    found = subprocess.run(
        [sys.executable, "run.py", "--backend", "onnxruntime", "--seconds", "0.2"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert found.returncode in (0, 1), found.stderr
    result = next(place.rglob("result.json"))
    added = command("report", str(own_run), "--add", str(result), cwd=tmp_path)
    assert added.returncode == 0, added.stderr
    assert "On the device" in (own_run / "report.html").read_text(encoding="utf-8")
    named = command("report", str(own_run), "--add", str(result), "--name", "Desk 2", cwd=tmp_path)
    assert str(own_run / "devices" / "desk-2.json") in named.stdout, named.stderr
    assert len(list((own_run / "devices").iterdir())) == 2
    assert "left out" not in made.stdout
    limits = json.loads((place / "limits.json").read_text())
    assert 0 < limits["min_accuracy"] <= 1


def test_a_bundle_says_what_stays_behind(own_run: Path, tmp_path: Path) -> None:
    (own_run / "variants").mkdir(exist_ok=True)
    entry = {"precision": "int8", "file": "variants/student-int8.xml", "how": "nncf, mixed"}
    (own_run / "variants" / "variants.json").write_text(json.dumps({"variants": [entry], "refused": []}))
    made = command("bundle", str(own_run), "-o", "student.zip", "--images", "4", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "fp32; 4 images" in made.stdout
    assert "int8 is left out: variants/student-int8.xml is in OpenVINO's own format" in made.stdout


def test_a_model_repository_for_triton(own_run: Path, tmp_path: Path) -> None:
    made = command("serve-config", str(own_run / "student.onnx"), "-o", "models", "--name", "digits", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "max_batch_size: 8" in (tmp_path / "models" / "digits_onnx" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("build", "student.onnx", "--batch", "1,x,3"), 2, "is not smallest,usual,largest"),
        (("build", "student.onnx", "--batch", "4,2,1"), 2, "not smallest, usual, largest"),
        (("build", "student.onnx", "--precision", "fp12"), 2, "unknown precision 'fp12'"),
        (("build", "none.onnx"), 2, "no ONNX file at none.onnx"),
        (("build", "student.onnx", "--target", "jetson-orin"), 2, "built on the board"),
        (("build", "student.onnx", "--target", "cpu"), 2, "runs no engine: ONNX Runtime on a CPU"),
        (("build", "student.onnx", "--target", "tpu"), 2, "unknown target 'tpu'"),
        (("build", "student.onnx", "--tactic-memory", "0"), 2, "tactic_mib is 0"),
        (("bundle", "nowhere"), 2, "nowhere"),
        (("deploy", "user@board", "none.zip"), 2, "none.zip"),
        (("serve-config", "none.onnx"), 2, "none.onnx"),
        (("report", "run", "--add", "none.json"), 2, "none.json"),
        (("report", "run", "--name", "desk"), 2, "--name names the result of a board"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], code: int, words: str, own_run: Path, tmp_path: Path
) -> None:
    shutil.copy(own_run / "student.onnx", tmp_path / "student.onnx")
    found = command(*arguments, cwd=tmp_path)
    assert found.returncode == code, found.stderr
    assert found.stderr.startswith("error: ")
    assert words in found.stderr
    assert found.stderr.count("\n") == 1


def test_building_without_tensorrt_says_what_is_missing(own_run: Path, tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        for given in ((), ("--precision", "best", "--data", "digits")):
            found = command("build", str(own_run / "student.onnx"), *given, cwd=tmp_path)
            assert found.returncode == 3
            assert "TensorRT" in found.stderr
    else:
        pytest.skip("TensorRT is installed here")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_file_for_an_engine_is_made_as_tensorrt_wants_it(precision: str, own_run: Path, tmp_path: Path) -> None:
    """What `build --precision` hands to TensorRT, up to the point where a GPU is needed."""
    from iekd.compress.data import load_data
    from iekd.compress.engines import convert
    from iekd.deploy.export import read_metadata
    from iekd.deploy.graph_checks import quantization_problems

    file = convert(own_run / "student.onnx", precision, load_data("digits"), tmp_path)
    model = onnx.load(str(file))
    assert read_metadata(file).classes == tuple(str(number) for number in range(10))
    if precision == "int8":
        assert quantization_problems(model) == []
    else:
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.FLOAT16 in kinds


def test_another_precision_needs_images(monkeypatch: pytest.MonkeyPatch, own_run: Path, tmp_path: Path) -> None:
    from iekd.compress import engines
    from iekd.deploy.engine import BuildSettings
    from iekd.errors import InputError

    class Present:
        def require(self) -> None:
            """As on a machine that has TensorRT."""

    monkeypatch.setattr(engines, "get_backend", lambda name: Present())
    with pytest.raises(InputError, match="needs images to calibrate on"):
        engines.build_engines(own_run / "student.onnx", "int8", BuildSettings(), data=None, folder=tmp_path)


def test_a_build_shows_its_progress_and_its_layers(monkeypatch: pytest.MonkeyPatch, own_run: Path) -> None:
    """From the builder to the line that the user sees; the builder itself needs a GPU and is scripted."""
    from iekd.compress import device_commands, engines
    from iekd.deploy.engine import BuiltEngine

    class Present:
        def require(self) -> None: ...

    def build(onnx: Path, settings: Any, *, progress: Any, log: Any) -> BuiltEngine:
        progress(0.5, "Tactics")
        layers = [{"Name": "conv", "LayerType": "DLA"}, {"Name": "softmax", "LayerType": "CudaSoftMax"}]
        onnx.with_suffix(".layers.json").write_text(json.dumps({"Layers": layers}))
        return BuiltEngine(onnx, None, onnx)  # type: ignore[arg-type]

    class Screen(Console):
        def status(self, text: Any, **_: Any) -> Any:
            return contextlib.nullcontext(SimpleNamespace(update=shown.append))

    shown: list[str] = []
    app = typer.Typer()
    device_commands.add_commands(app, Screen())
    monkeypatch.setattr(engines, "get_backend", lambda name: Present())
    monkeypatch.setattr(engines, "build", build)
    done = CliRunner().invoke(app, ["build", str(own_run / "student.onnx")])
    assert done.exit_code == 0, done.output
    assert shown == ["building 50%  Tactics"]
    assert "2 layers (2 of untold precision), reformats: 0\n" in done.output
    done = CliRunner().invoke(app, ["build", str(own_run / "student.onnx"), "--batch", "1", "--dla", "0"])
    assert "1 on the DLA, on the GPU softmax" in done.output


def test_a_benchmark_names_each_file_by_its_digest_and_shape(own_run: Path, tmp_path: Path) -> None:
    found = command("bench", str(own_run), "--seconds", "0.1", "--threads", "1", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    measured = json.loads((tmp_path / "bench" / "bench.json").read_text())["models"]
    for name in ("teacher", "student"):
        digest = hashlib.sha256((own_run / f"{name}.onnx").read_bytes()).hexdigest()
        assert (measured[name]["sha256"], measured[name]["input_shape"]) == (digest, [3, 32, 32])


def test_what_run_py_is_told_goes_through_deploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from iekd.compress import device_commands
    from iekd.deploy import device_results, remote

    def there(host: str, bundle: Path, **given: Any) -> Path:
        told.extend(given["arguments"])
        return tmp_path / "result.json"

    told: list[str] = []
    app = typer.Typer()
    device_commands.add_commands(app, Console())
    monkeypatch.setattr(remote, "deploy", there)
    kept = SimpleNamespace(verdict=SimpleNamespace(kept=True))
    monkeypatch.setattr(device_results, "read_device_result", lambda path: kept)
    given = ["--run-option=--max-batch=1", "--run-option=--workspace=512"]
    done = CliRunner().invoke(app, ["deploy", "user@board", "student.zip", "--seconds", "2", *given])
    assert done.exit_code == 0, done.output
    assert told == ["--backend", "tensorrt", "--seconds", "2", "--max-batch=1", "--workspace=512"]


def test_where_the_time_of_a_call_goes_is_told(own_run: Path, tmp_path: Path) -> None:
    given = ("bench", str(own_run / "student.onnx"), "--backend", "openvino", "--seconds", "0.1", "--threads", "1")
    found = command(*given, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "compute ms" in found.stdout
    measured = json.loads((tmp_path / "bench" / "bench.json").read_text())["models"]["student"]["latency"]
    assert set(measured["parts"]) == {"h2d", "compute", "d2h"}
    assert measured["parts"]["compute"]["median"]["value"] < measured["median"]["value"]
