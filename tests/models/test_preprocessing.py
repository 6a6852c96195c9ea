"""From an image to a tensor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing, to_rgb


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (40, 80), (198, 33), (16, 8)])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_agrees_with_torchvision(shape, fraction):
    """An independent writing of the same steps: torchvision's own, as timm and torchvision evaluate their models.

    All shapes come to whole, even sizes: what a half is rounded to is nobody's standard.
    """
    size = 32
    ours = Preprocessing(size=size, crop_fraction=fraction, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    short = round(size / fraction)
    theirs = v2.Compose(
        [
            v2.Resize(short, interpolation=v2.InterpolationMode.BILINEAR),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(ours.mean, ours.std),
        ]
    )
    got, expected = ours(noise(*shape)), theirs(noise(*shape)).numpy()
    assert got.dtype == np.float32
    assert got.shape == (3, size, size)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_crop_is_central():
    image = Image.new("RGB", (99, 33))
    image.paste((255, 255, 255), (33, 0, 66, 33))
    assert np.asarray(Preprocessing(size=33).fit(image)).min() == 255


def test_an_image_of_the_right_size_is_only_normalized():
    image = noise(24, 24)
    expected = (np.asarray(image) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
    got = Preprocessing(size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))(image)
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    assert got.flags.c_contiguous


def test_json_round_trip():
    preprocessing = Preprocessing(size=96, crop_fraction=0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    assert json.loads(preprocessing.to_json())["layout"] == "NCHW"


@pytest.mark.parametrize("bad", [{"size": 0}, {"crop_fraction": 0.0}, {"crop_fraction": 1.1}, {"std": (1.0, 0.0, 1.0)}])
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError, match="no preprocessing"):
        Preprocessing(**{"size": 8, **bad})


def test_grey_levels_of_16_bits_are_scaled():
    wide = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert np.asarray(to_rgb(wide))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_dropped_and_palettes_resolved():
    image = noise(8, 8)
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(3)
    assert to_rgb(with_alpha).tobytes() == image.tobytes()
    palette = image.quantize(256)
    palette.info["transparency"] = bytes(range(256))
    assert to_rgb(palette).tobytes() == image.quantize(256).convert("RGB").tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_in_every_format(tmp_path, suffix):
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / f"grey.{suffix}")
    with Image.open(tmp_path / f"grey.{suffix}") as image:
        found = np.asarray(to_rgb(image)).astype(int)
    assert np.abs(found - (levels[..., None] / 257)).max() < 1
