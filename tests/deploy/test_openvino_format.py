"""Files in OpenVINO's own format: what reads them, and how the rest refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from quantization_samples import CLASSES, SIZE, images, write
from small import command, refused

from iekd.deploy.backends import get_backend
from iekd.deploy.bundle import write_bundle
from iekd.deploy.export import read_metadata
from iekd.deploy.graph_checks import load_float
from iekd.deploy.openvino_format import read_entries, write_entries
from iekd.deploy.predict import predict
from iekd.deploy.triton import read_interface
from iekd.errors import EnvironmentMissingError, InputError
from iekd.files import sha256_of

openvino = pytest.importorskip("openvino", reason="needs the extra `openvino`")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same network as ONNX and in OpenVINO's format, with the same metadata."""
    folder = tmp_path_factory.mktemp("formats")
    exported = write(folder / "float.onnx")
    model = openvino.Core().read_model(exported)
    write_entries(model, {entry.key: entry.value for entry in onnx.load(str(exported)).metadata_props})
    openvino.save_model(model, str(folder / "own.xml"), compress_to_fp16=False)
    return exported, folder / "own.xml"


def test_it_carries_the_metadata(pair: tuple[Path, Path]) -> None:
    exported, own = pair
    assert read_metadata(own) == read_metadata(exported)
    assert read_metadata(own).classes == CLASSES


def test_it_predicts_as_the_onnx_file_does(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(pictures[-1])
    exact, own = (list(predict(file, pictures)) for file in pair)
    assert [name for _, name, _ in own] == [name for _, name, _ in exact]
    assert np.allclose([share for *_, share in own], [share for *_, share in exact], atol=1e-4)
    told = command("predict", str(pair[1]), str(pictures[0]), cwd=tmp_path)
    assert told.stdout.split("\t")[1] == own[0][1], told.stderr


def test_it_is_measured_beside_the_onnx_file(pair: tuple[Path, Path], tmp_path: Path, small_classes: str) -> None:
    given = ("--data", small_classes, "--seconds", "0.1", "--threads", "1")
    told = command("bench", *map(str, pair), *given, "--backend", "openvino", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())["models"]
    assert found["own"]["accuracy"] == found["float"]["accuracy"]
    assert found["own"]["weights_sha256"] == sha256_of(pair[1].with_suffix(".bin"))
    assert "weights_sha256" not in found["float"]


@pytest.fixture
def small_classes(tmp_path: Path) -> str:
    """A folder of pictures of the classes that the network knows."""
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for at in range(2):
                Image.new("RGB", (SIZE, SIZE), (60 * number, 90 * at, 30)).save(place / f"{at}.png")
    return f"folder:{tmp_path / 'pictures'}"


def test_the_others_refuse_it_in_one_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    own = str(pair[1])
    for arguments, words in (
        (("build", own), ("which TensorRT does not read", "student.onnx")),
        (("serve-config", own), ("which serve-config does not read", "student.onnx")),
        (("quantize", own, "-o", "q.onnx", "--data", "digits"), ("which quantisation does not read", "student.onnx")),
        (("bundle", own), ("own.xml is a file", "folder of a finished run")),
        (("bench", own, "--data", "digits"), ("which ONNX Runtime does not read", "--backend openvino")),
    ):
        refused(command(*arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_nothing_takes_it_for_onnx(pair: tuple[Path, Path], tmp_path: Path) -> None:
    own = pair[1]
    with pytest.raises(InputError, match="quantisation does not read"):
        load_float(own)
    with pytest.raises(InputError, match="serve-config does not read"):
        read_interface(own)
    pixels, labels = np.zeros((1, SIZE, SIZE, 3), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(InputError, match="a board does not read"):
        write_bundle(tmp_path / "b.zip", {"int8": own}, pixels, labels)
    assert not (tmp_path / "b.zip").exists()


def test_what_is_missing_or_damaged_is_named(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone.xml"
    alone.write_bytes(pair[1].read_bytes())
    for read in (read_metadata, lambda path: get_backend("openvino").load(path)):
        with pytest.raises(InputError, match=r"alone.bin, the weights of alone.xml, is missing"):
            read(alone)
        with pytest.raises(InputError, match="no file at"):
            read(tmp_path / "none.xml")
    alone.write_text("no model")
    alone.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(InputError, match="is not a file in OpenVINO's format"):
        read_entries(alone)
    bare = tmp_path / "bare.xml"
    openvino.save_model(openvino.Core().read_model(pair[0]), str(bare))
    with pytest.raises(InputError, match="says nothing of its classes"):
        read_metadata(bare)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(EnvironmentMissingError, match="needs OpenVINO"):
        read_metadata(pair[1])


def test_the_session_answers_as_the_onnx_file_s(pair: tuple[Path, Path]) -> None:
    exact, own = (get_backend("openvino").load(file, threads=1).run(images(3)) for file in pair)
    assert np.abs(exact - own).max() < 1e-4
