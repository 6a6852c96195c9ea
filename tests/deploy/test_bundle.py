"""The bundle as a file: what is in it, that it is the same each time, and what is refused."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundle_samples import CLASSES, PREPROCESSING, Brightness, sample_bundle, sample_images, sample_models

from iekd.deploy.bundle import device_sources, write_bundle
from iekd.deploy.export import export_onnx
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing

ALLOWED = {"numpy", "tensorrt", "onnxruntime", "PIL"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sample_models(tmp_path_factory.mktemp("models"))


def test_the_bundle_holds_what_the_board_needs(tmp_path: Path, models: dict[str, Path]) -> None:
    path = sample_bundle(tmp_path, models, min_accuracy=0.9, max_latency_ms=5.0)
    with zipfile.ZipFile(path) as archive:
        contents = {name.removeprefix("brightness-bundle/"): archive.read(name) for name in archive.namelist()}
    sources = {f"device/{source.name}" for source in device_sources()}
    assert {"device/__init__.py", "device/run.py", "device/onnx_session.py"} <= sources
    data = {"classes.json", "preprocessing.json", "limits.json", "host.json", "images.npz", "manifest.json"}
    assert contents.keys() == sources | data | {"run.py", "models/fp32.onnx", "models/fp16.onnx"}
    manifest = json.loads(contents.pop("manifest.json"))
    assert manifest["name"] == "brightness"
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    assert tuple(json.loads(contents["classes.json"])) == CLASSES
    assert Preprocessing.from_json(contents["preprocessing.json"].decode()) == PREPROCESSING
    assert json.loads(contents["limits.json"]) == {"min_accuracy": 0.9, "max_latency_ms": 5.0}
    assert contents["models/fp32.onnx"] == models["fp32"].read_bytes()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, models: dict[str, Path]) -> None:
    first, second = (sample_bundle(tmp_path / name, models).read_bytes() for name in ("a", "b"))
    assert first == second
    assert sample_bundle(tmp_path / "c", models, max_latency_ms=1.0).read_bytes() != first


def test_a_failure_leaves_no_bundle(tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(Exception, match="No space left"):
        sample_bundle(tmp_path, models)
    assert list(tmp_path.iterdir()) == []


def test_models_that_disagree_are_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    images, labels = sample_images()
    other = export_onnx(
        Brightness(), tmp_path / "o.onnx", preprocessing=PREPROCESSING, classes=("a", "b"), name="brightness"
    )
    with pytest.raises(InputError, match=r"o\.onnx \(int8\) has other classes"):
        write_bundle(tmp_path / "b.zip", {**models, "int8": other}, images, labels)
    with pytest.raises(InputError, match="what was asked for"):
        write_bundle(tmp_path / "b.zip", models, images, labels, classes=("x", "y"))


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), np.zeros(2), "float32"),
        (np.zeros((2, 3, 16, 16), np.uint8), np.zeros(2), "16, 16, 3"),
        (np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0), "uint8"),
        (np.zeros((2, 16, 16, 3), np.uint8), np.zeros(3), "as many labels"),
        (np.zeros((2, 16, 16, 3), np.uint8), np.array([0, 2]), "labels of 0 to 1"),
    ],
)
def test_unfit_images_are_refused(
    tmp_path: Path, models: dict[str, Path], images: np.ndarray, labels: np.ndarray, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        write_bundle(tmp_path / "b.zip", models, images, labels.astype(np.int64))


def test_names_that_are_no_file_names_are_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    images, labels = sample_images()
    with pytest.raises(InputError, match="cannot be the name of a precision"):
        write_bundle(tmp_path / "b.zip", {"../fp32": models["fp32"]}, images, labels)
    with pytest.raises(InputError, match="at least one model"):
        write_bundle(tmp_path / "b.zip", {}, images, labels)
    with pytest.raises(InputError, match="is not a share"):
        write_bundle(tmp_path / "b.zip", models, images, labels, min_accuracy=97)


@pytest.mark.parametrize("source", device_sources(), ids=lambda path: path.name)
def test_what_travels_imports_only_what_the_board_has(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"line {node.lineno} reaches out of the package"
            names = [] if node.level else [node.module or ""]
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names | ALLOWED, f"line {node.lineno} imports {name}"
