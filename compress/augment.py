"""Augmentation presets: image in, image of the model's input size out, chance only through the generator given.

Each preset's geometry is one or two Pillow calls, because small images are augmented in the training process itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from iekd.errors import unknown_name
from iekd.models.preprocessing import Preprocessing

Augmentation = Callable[[Image.Image, Preprocessing, np.random.Generator], Image.Image]
"""(image as stored, preprocessing, generator) -> RGB image of ``preprocessing.size``, not yet normalised."""


def none(image: Image.Image, preprocessing: Preprocessing, _: np.random.Generator) -> Image.Image:
    """As in validation."""
    return preprocessing.fit(image)


def digits(image: Image.Image, preprocessing: Preprocessing, generator: np.random.Generator) -> Image.Image:
    """Rotate by up to 12 degrees, scale by up to 12 %, shift by up to 8 % of the side; never mirror.  Black beyond."""
    image = preprocessing.fit(image)
    size = preprocessing.size
    turn, zoom, right, down = generator.uniform(-1, 1, 4)
    angle, scale = math.radians(12 * turn), math.exp(0.12 * zoom)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    centre = size / 2
    x, y = centre + 0.08 * size * right, centre + 0.08 * size * down
    matrix = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
    return image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def crop(image: Image.Image, preprocessing: Preprocessing, generator: np.random.Generator) -> Image.Image:
    """Pad by an eighth of the side in black, crop at random, mirror half of the time: the custom for CIFAR images.

    He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2, pads 32 pixels by 4.
    """
    image = preprocessing.resize(image)
    size = preprocessing.size
    pad = size // 8
    left = int(generator.integers(-pad, image.width - size + pad, endpoint=True))
    top = int(generator.integers(-pad, image.height - size + pad, endpoint=True))
    image = image.crop((left, top, left + size, top + size))  # Pillow fills with black where the box leaves the image
    return _mirrored_half_the_time(image, generator)


def standard(image: Image.Image, preprocessing: Preprocessing, generator: np.random.Generator) -> Image.Image:
    """A box of 35 to 100 % of the area and aspect 3:4 to 4:3, resized; mirrored half of the time.

    The random resized crop of Szegedy et al., "Going Deeper with Convolutions", 2015, section 6, with a larger least
    area than its 8 %, as fits short trainings (Wightman et al., "ResNet strikes back", 2021).
    """
    size = preprocessing.size
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=_random_box(image.size, generator))
    return _mirrored_half_the_time(image, generator)


def strong(image: Image.Image, preprocessing: Preprocessing, generator: np.random.Generator) -> Image.Image:
    """``standard``, then RandAugment: two operations of magnitude 9 of 31 (Cubuk et al., 2020), by torchvision."""
    image = standard(image, preprocessing, generator)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(int(generator.integers(2**62)))
        result: Image.Image = _rand_augment()(image)
    return result


PRESETS: dict[str, Augmentation] = {
    "none": none,
    "digits": digits,
    "crop": crop,
    "standard": standard,
    "strong": strong,
}


def preset(name: str) -> Augmentation:
    """The preset of that name.

    Raises:
        InputError: unknown name.
    """
    if name not in PRESETS:
        raise unknown_name("augmentation", name, PRESETS)
    return PRESETS[name]


@cache
def _rand_augment() -> Any:
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandAugment(num_ops=2, magnitude=9, interpolation=InterpolationMode.BILINEAR)


def _random_box(size: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
    """A box inside an image of ``size`` (width, height); the largest centred one if ten draws do not fit."""
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(0.35, 1.0)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            left = generator.uniform(0, width - box_width)
            top = generator.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _mirrored_half_the_time(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else image
