"""quantize and prune, started as a user starts them."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from quantization_samples import CLASSES, labelled, loud_channel, write
from small import command
from torch import nn
from typer.testing import CliRunner

from iekd.compress import cli, files
from iekd.compress.targets import TARGETS
from iekd.deploy.backends import get_backend
from iekd.deploy.export import read_metadata
from iekd.deploy.graph_checks import Graph
from iekd.deploy.results import Interval
from iekd.errors import InputError
from iekd.models.checkpoint import Artefact, load_artefact, save_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import Architecture, build, count_macs


def test_a_file_is_quantised_and_its_cost_told(finished_run: Path, tmp_path: Path) -> None:
    given = ("--data", "digits", "--max-drop", "1", "--calibration-images", "32")
    made = command("quantize", str(finished_run / "student.onnx"), "-o", "q.onnx", *given, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert " validation images" in made.stdout
    assert "ms" in made.stdout
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(tmp_path / "q.onnx")).graph.node}
    again = command("quantize", "q.onnx", "-o", "qq.onnx", *given, cwd=tmp_path)
    assert again.returncode == 2
    assert "quantised already" in again.stderr


class Pictures(list[tuple[Image.Image, int]]):
    """Noise of the samples' size, with classes; enough of a data set to be read from."""

    def __init__(self, labels: Iterable[int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        noise = (random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in itertools.count())
        super().__init__((Image.fromarray(pixels), label) for pixels, label in zip(noise, labels, strict=False))

    @property
    def targets(self) -> np.ndarray:
        return np.array([label for _, label in self])


def data(train: Pictures, val: Pictures) -> Any:
    return lambda _name, **_: SimpleNamespace(classes=CLASSES, train=train, val=val, in_memory=True)


def test_few_images_calibrate_by_half_unless_more_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "float.onnx")
    few = Pictures(number % len(CLASSES) for number in range(61))
    monkeypatch.setattr(files, "load_data", data(few, Pictures(range(4))))
    how = {"data": "few", "precision": "int8", "target": "jetson-orin", "max_drop": 1.0}
    assert "calibrated on 30 images" in files.quantize_file(source, tmp_path / "q.onnx", **how)
    files.quantize_file(source, tmp_path / "r.onnx", **how, calibration_images=60)
    with pytest.raises(InputError, match=r"61 calibration .* there are 61 training images.*Ask for at most 30"):
        files.quantize_file(source, tmp_path / "s.onnx", **how, calibration_images=61)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_the_accuracy_that_is_told_is_that_on_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Training labels are the network's own answers, so that nothing is lost on them; half of the others are wrong."""
    if precision == "bf16":
        pytest.importorskip("onnxconverter_common", reason="needs the extra `quantize`")
    source = write(tmp_path / "float.onnx")
    given = data(_labelled(source, 64, wrong=0), _labelled(source, 40, wrong=20))
    monkeypatch.setattr(files, "load_data", given)
    how = {"data": "any", "precision": precision, "target": "jetson-orin", "max_drop": 1.0}
    text = files.quantize_file(source, tmp_path / "q.onnx", **how)
    found = re.search(r": 50\.00% -> ([0-9.]+)% on 40 validation images", text)
    assert found, text
    assert abs(float(found[1]) - 50) <= 10


def _labelled(source: Path, count: int, wrong: int) -> Pictures:
    """Pictures of the classes that the file sees in them, but for the first ones."""
    found = Pictures([0] * count, seed=count)
    preprocessing = read_metadata(source).preprocessing
    images = np.stack([preprocessing(image) for image, _ in found])
    answers = get_backend("onnxruntime").load(source, threads=1).run(images).argmax(1)
    found[:] = [
        (image, int(answer + (number < wrong)) % len(CLASSES))
        for number, ((image, _), answer) in enumerate(zip(found, answers, strict=True))
    ]
    return found


def test_layers_that_stay_in_float_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "loud.onnx", loud_channel(1000.0))
    pictures, labels = labelled(source, 128)
    monkeypatch.setattr(files, "load_data", data(Pictures(labels), Pictures(range(4))))
    monkeypatch.setattr(files, "chosen_arrays", lambda _source, _how, numbers: (pictures[numbers], labels[numbers]))
    how = {"data": "any", "precision": "int8", "target": "jetson-orin", "max_drop": 0.04}
    text = files.quantize_file(source, tmp_path / "q.onnx", **how)
    assert any(f" in float: {node.name}" in text for node in Graph(onnx.load(str(source))).layers()), text


@pytest.fixture
def prunable(tmp_path: Path) -> Path:
    architecture = Architecture("function", "tiny_networks:wide")
    names = tuple(str(number) for number in range(10))
    network = build(architecture, 10, 16)
    save_artefact(tmp_path / "whole", Artefact(network, architecture, names, Preprocessing(size=16), {}))
    return tmp_path / "whole"


def pruned(source: Path, *flags: str) -> Any:
    """The command, in this process."""
    return CliRunner().invoke(cli.app, ["prune", str(source), "-o", str(source.parent / "cut"), *flags])


@pytest.mark.parametrize(
    ("flags", "backend", "threads"),
    [
        ((), "onnxruntime", len(os.sched_getaffinity(0))),
        (("--threads", "1"), "onnxruntime", 1),
        (("--target", "openvino", "--threads", "3"), "openvino", 3),
    ],
)
def test_a_latency_is_measured_as_a_run_for_that_target_does(
    flags: tuple[str, ...], backend: str, threads: int, prunable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts, a million multiplications a millisecond."""
    asked: list[dict[str, Any]] = []
    timed: list[int] = []

    def clock(**how: Any) -> Any:
        asked.append(how)

        def measure(network: nn.Module) -> float:
            timed.append(count_macs(network, how["image_size"]))
            return timed[-1] / 1e6

        return measure

    def gain(_networks: object, **how: Any) -> Any:
        asked.append(how)
        one = Interval(value=1, low=1, high=1)
        return SimpleNamespace(
            latency={name: SimpleNamespace(median=one) for name in ("before", "after")}, ratio=lambda *_names: one
        )

    monkeypatch.setattr("iekd.compress.pruning.share.onnx_latency", clock)
    monkeypatch.setattr(files, "measure_networks", gain)
    monkeypatch.setattr(files, "get_backend", lambda _name: SimpleNamespace(require=lambda: None))
    whole = count_macs(load_artefact(prunable).network, 16)
    found = pruned(prunable, "--max-latency", f"{0.6 * whole / 1e6}ms", *flags)
    assert found.exit_code == 0, found.output
    assert len(timed) > 2
    left = load_artefact(prunable.parent / "cut")
    assert count_macs(left.network, 16) <= 0.6 * whole
    assert left.facts["pruning"][0]["goal"] == {"milliseconds": pytest.approx(0.6 * whole / 1e6)}
    assert [(how["backend"], how["threads"], how["image_size"], how["classes"]) for how in asked] == 2 * [
        (backend, threads, 16, 10)
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-latency", "1ms", "--target", "jetson-orin"), "measured on the board"),
        (("--max-latency", "soon"), "--max-latency 'soon' is not a duration"),
        (("--ratio", "0.5", "--target", "cpuu"), "unknown target 'cpuu'"),
        (("--ratio", "0.5", "--criterion", "taylor"), "this command reads none.*--prune-criterion taylor"),
    ],
)
def test_what_a_pruning_cannot_do_is_told_in_words_of_the_command_line(
    flags: tuple[str, ...], words: str, prunable: Path
) -> None:
    found = pruned(prunable, *flags)
    assert isinstance(found.exception, InputError)
    assert re.search(words, str(found.exception)), found.exception
    assert not (prunable.parent / "cut").exists()


def test_widths_are_rounded_as_the_target_likes(prunable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[int] = []

    def cut(*_places: Path, round_to: int, **_how: Any) -> Any:
        rounded.append(round_to)
        raise InputError("enough")

    monkeypatch.setattr(files, "prune_artefact", cut)
    orin = ("--target", "jetson-orin")
    monkeypatch.setitem(TARGETS, "jetson-orin", dataclasses.replace(TARGETS["jetson-orin"], round_to=32))
    for flags in ((), orin, (*orin, "--round-to", "4")):
        pruned(prunable, "--ratio", "0.5", *flags)
    assert rounded == [TARGETS["cpu"].round_to, 32, 4]


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
          "jetson-orin"),
         "error: jetson-orin has no fp8: its GPU is SM 8.7, fp8 needs SM 8.9 or later.  Choose one of fp16, int8, "
         "bf16."),
        (("quantize", "RUN/student.onnx", "-o", "q.onnx", "--data", "digits", "--calibration-images", "100000"),
         "100000"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str, finished_run: Path, tmp_path: Path) -> None:
    found = command(*(part.replace("RUN", str(finished_run)) for part in arguments), cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert words in found.stderr
    assert found.stderr.count("\n") == 1
