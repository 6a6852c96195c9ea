"""What the board feeds the model against what the host fed it: the same numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iekd.deploy.device.errors import DeviceError, DeviceMissingError
from iekd.deploy.device.images import Preprocessing as OnBoard
from iekd.deploy.device.images import read_preprocessing
from iekd.models.preprocessing import Preprocessing

HOST = [
    Preprocessing(size=32),
    Preprocessing(size=32, crop_fraction=0.875),
    Preprocessing(size=224, crop_fraction=0.95, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0)),
]


def on_board(host: Preprocessing, folder: Path) -> OnBoard:
    (folder / "preprocessing.json").write_text(host.to_json())
    return read_preprocessing(folder / "preprocessing.json")


def image_of(mode: str, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[..., :3])
    return image.convert(mode)


@pytest.mark.parametrize("host", HOST)
@pytest.mark.parametrize("size", [(32, 32), (61, 40), (40, 300), (9, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "1"])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_image_files_become_what_they_become_on_the_host(
    tmp_path: Path, host: Preprocessing, size: tuple[int, int], mode: str
) -> None:
    path = tmp_path / "image.png"
    image_of(mode, size).save(path)
    with Image.open(path) as image:
        expected = host(image)
    found = on_board(host, tmp_path).load(path)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("host", HOST)
def test_bundled_pixels_become_what_the_host_fed(tmp_path: Path, host: Preprocessing) -> None:
    pictures = [image_of("RGB", (60, 50 + number)) for number in range(3)]
    pixels = np.stack([np.asarray(host.fit(picture)) for picture in pictures])
    expected = np.stack([host(picture) for picture in pictures])
    np.testing.assert_allclose(on_board(host, tmp_path).normalize(pixels), expected, rtol=0, atol=1e-6)


def test_arrays_need_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    board = on_board(HOST[0], tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    expected = HOST[0].normalize(pixels)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "ready.npy", expected)
    np.testing.assert_allclose(board.load(tmp_path / "pixels.npy"), expected, atol=1e-6)
    np.testing.assert_array_equal(board.load(tmp_path / "ready.npy"), expected)
    np.save(tmp_path / "large.npy", np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(DeviceMissingError, match=r"48 x 64 pixels, not 32 x 32: that needs Pillow.*python3-pil"):
        board.load(tmp_path / "large.npy")
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(DeviceMissingError, match="is an image file: that needs Pillow"):
        board.load(tmp_path / "image.png")


def test_arrays_of_another_size_are_resized_like_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)
    np.save(tmp_path / "large.npy", pixels)
    found = on_board(HOST[1], tmp_path).load(tmp_path / "large.npy")
    np.testing.assert_allclose(found, HOST[1](Image.fromarray(pixels)), atol=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\)"),
        (np.zeros((32, 32, 3), np.float32), "normalised float32"),
        (np.zeros((3, 32, 32), np.float64), "float64"),
        (np.zeros((0, 32, 3), np.uint8), "uint8"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DeviceError, match=words):
        on_board(HOST[0], tmp_path).load(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array", b"\x80\x04N."])
@pytest.mark.parametrize("suffix", [".npy", ".jpg"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(DeviceError, match=f"bad{suffix}"):
        on_board(HOST[0], tmp_path).load(path)


@pytest.mark.parametrize(
    "changes", [{"layout": "NHWC"}, {"interpolation": "bicubic"}, {"std": [1, 0, 1]}, {"mean": [1]}, {"size": None}]
)
def test_an_unknown_preprocessing_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "preprocessing.json").write_text(json.dumps({**json.loads(HOST[0].to_json()), **changes}))
    with pytest.raises(DeviceError, match=r"preprocessing\.json"):
        read_preprocessing(tmp_path / "preprocessing.json")
