"""quantize and prune, started as a user starts them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image
from quantization_samples import CLASSES, labelled, loud_channel, write
from small import command

from iekd.compress import files
from iekd.deploy.graph_checks import Graph
from iekd.errors import InputError
from iekd.models.checkpoint import load_artefact
from iekd.models.registry import count_macs


def test_a_file_is_quantised_and_its_cost_told(finished_run: Path, tmp_path: Path) -> None:
    given = ("--data", "digits", "--max-drop", "1", "--calibration-images", "32")
    made = command("quantize", str(finished_run / "student.onnx"), "-o", "q.onnx", *given, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "%" in made.stdout
    assert "ms" in made.stdout
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(tmp_path / "q.onnx")).graph.node}
    again = command("quantize", "q.onnx", "-o", "qq.onnx", *given, cwd=tmp_path)
    assert again.returncode == 2
    assert "quantised already" in again.stderr


def test_few_images_calibrate_by_half_unless_more_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "float.onnx")
    noise = np.random.default_rng(0).integers(0, 256, (61, 16, 16, 3), dtype=np.uint8)
    few = [(Image.fromarray(pixels), number % len(CLASSES)) for number, pixels in enumerate(noise)]
    monkeypatch.setattr(files, "load_data", lambda _name: SimpleNamespace(classes=CLASSES, train=few))
    how = {"data": "few", "precision": "int8", "target": "jetson-orin", "max_drop": 1.0}
    assert "calibrated on 31 images" in files.quantize_file(source, tmp_path / "q.onnx", **how)
    with pytest.raises(InputError, match="256 calibration images were asked for, there are 31"):
        files.quantize_file(source, tmp_path / "r.onnx", **how, calibration_images=256)


def test_layers_that_stay_in_float_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "loud.onnx", loud_channel(1000.0))
    pictures, labels = labelled(source, 128)
    monkeypatch.setattr(files, "load_data", lambda _name: SimpleNamespace(classes=CLASSES, train=None))
    monkeypatch.setattr(files, "some_arrays", lambda *_given: (pictures, labels))
    how = {"data": "any", "precision": "int8", "target": "jetson-orin", "max_drop": 0.04}
    text = files.quantize_file(source, tmp_path / "q.onnx", **how)
    assert any(f" in float: {node.name}" in text for node in Graph(onnx.load(str(source))).layers()), text


def test_an_artefact_is_pruned_and_its_gain_told(finished_run: Path, tmp_path: Path) -> None:
    made = command("prune", str(finished_run / "student"), "-o", "pruned", "--fewer-macs", "0.3", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "MACs" in made.stdout
    before, after = (
        count_macs(load_artefact(place).network, 32) for place in (finished_run / "student", tmp_path / "pruned")
    )
    assert after <= 0.7 * before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prune", "RUN/student", "-o", "p"), "one goal is needed"),
        (("prune", "RUN/student", "-o", "p", "--ratio", "1.5"), "ratio"),
        (("prune", "nowhere", "-o", "p", "--ratio", "0.5"), "nowhere"),
        (("quantize", "RUN/student.onnx", "-o", "q.onnx", "--data", "digits", "--target", "cpuu"), "target 'cpuu'"),
        (("quantize", "RUN/student.onnx", "-o", "q.onnx", "--data", "digits", "--precision", "int4"), "int4"),
        (("quantize", "RUN/student.onnx", "-o", "q.onnx", "--data", "digits", "--precision", "fp8", "--target",
          "jetson-orin"), "fp8"),
        (("quantize", "RUN/student.onnx", "-o", "q.onnx", "--data", "digits", "--calibration-images", "100000"),
         "100000"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str, finished_run: Path, tmp_path: Path) -> None:
    found = command(*(part.replace("RUN", str(finished_run)) for part in arguments), cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert words in found.stderr
    assert found.stderr.count("\n") == 1
