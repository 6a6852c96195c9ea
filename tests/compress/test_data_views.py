"""Views are pure functions of (seed, image, view); loaders of (seed, epoch)."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from iekd.compress.augment import PRESETS, preset
from iekd.compress.data import ImageData, load_data
from iekd.compress.views import Batch, ViewDataset, auto_workers, plain_loader, train_loader
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing

SIZE = 32
PREPROCESSING = Preprocessing(size=SIZE)
AUGMENTING = sorted(set(PRESETS) - {"none"})


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", limit=60, val_limit=33)


def views(data: ImageData, augmentation: str = "digits", seed: int = 0) -> ViewDataset:
    return ViewDataset(data.train, PREPROCESSING, augmentation, seed)


def batches(dataset: ViewDataset, *, epoch: int = 0, seed: int = 0, views: int | None = None, workers: int = 0):
    return list(train_loader(dataset, batch_size=8, epoch=epoch, seed=seed, views=views, workers=workers))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_view_depends_on_nothing_but_seed_image_and_number(data, name):
    dataset = views(data, name)
    first = dataset[7, 3].image
    for disturb in (lambda: dataset[8, 3], lambda: dataset[7, 4], lambda: torch.manual_seed(1), lambda: random.seed(1)):
        disturb()
        assert torch.equal(views(data, name)[7, 3].image, first)


@pytest.mark.parametrize("name", AUGMENTING)
def test_views_seeds_and_images_differ(data, name):
    plain = views(data, name)[0, -1].image
    several = [views(data, name)[0, view].image for view in range(4)]
    several += [views(data, name, seed=seed)[0, 0].image for seed in range(1, 4)]
    distinct = {image.numpy().tobytes() for image in several}
    assert len(distinct) == len(several)
    # The crop in the middle, not mirrored, is one of the views that may come.
    assert sum(torch.equal(image, plain) for image in several) <= (name == "crop")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_view_keeps_label_shape_and_random_state(data, name):
    dataset = views(data, name)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    for index in (0, 11, 59):
        sample = dataset[index, 5]
        assert sample.image.shape == (3, SIZE, SIZE)
        assert sample.image.dtype == torch.float32
        assert (sample.target, sample.index, sample.view) == (data.train.targets[index], index, 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_plain_view_is_what_validation_sees(data, name):
    image, _ = data.train[4]
    assert np.array_equal(views(data, name)[4, -1].image.numpy(), PREPROCESSING(image))


@pytest.mark.parametrize("name", AUGMENTING)
@pytest.mark.parametrize("size", [(50, 20), (20, 50), (3, 3), (1, 40), (32, 32)])
def test_every_image_size_gives_the_input_size(name, size):
    image = Image.effect_noise(size, 60).convert("RGB")
    for seed in range(20):
        result = preset(name)(image, PREPROCESSING, np.random.default_rng(seed))
        assert (result.mode, result.size) == ("RGB", (SIZE, SIZE))


def test_digits_are_never_mirrored():
    left = Image.new("RGB", (SIZE, SIZE))
    left.paste((255, 255, 255), (4, 4, 14, SIZE - 4))
    for seed in range(50):
        pixels = np.asarray(preset("digits")(left, PREPROCESSING, np.random.default_rng(seed)), dtype=float)
        assert pixels[:, : SIZE // 2].sum() > pixels[:, SIZE // 2 :].sum()


def test_digits_move_a_dot_by_a_rotation_a_scaling_and_a_shift_within_their_bounds():
    """The centre moves by the shift alone; a second dot's distance to it shows the scaling, its direction the angle."""
    image = Image.new("RGB", (101, 101))
    image.paste((255, 0, 0), (49, 49, 52, 52))
    image.paste((0, 255, 0), (79, 49, 82, 52))
    preprocessing = Preprocessing(size=101)
    turns, scales, shifts = [], [], []
    for seed in range(200):
        pixels = np.asarray(preset("digits")(image, preprocessing, np.random.default_rng(seed)), dtype=float)
        centre, dot = (_centroid(pixels[:, :, channel]) for channel in (0, 1))
        arm = dot - centre
        turns.append(np.degrees(np.arctan2(arm[1], arm[0])))
        scales.append(np.hypot(*arm) / 30)
        shifts += list((centre - 50) / 101)
    for values, low, high, slack in ((turns, -12, 12, 0.5), (scales, 0.887, 1.127, 0.01), (shifts, -0.08, 0.08, 0.003)):
        width = high - low
        assert low - slack <= min(values) <= low + 0.1 * width
        assert high - 0.1 * width <= max(values) <= high + slack


def _centroid(weights: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def test_crop_shifts_by_at_most_an_eighth_and_mirrors_half_of_the_time():
    image = Image.new("RGB", (SIZE, SIZE))
    image.putpixel((10, 16), (255, 255, 255))
    seen = []
    for seed in range(400):
        result = np.asarray(preset("crop")(image, PREPROCESSING, np.random.default_rng(seed)))[:, :, 0]
        (y,), (x,) = np.nonzero(result)
        seen.append((x, y))
    plain, mirrored = (set(range(low, low + 9)) for low in (6, 17))
    xs, ys = zip(*seen, strict=True)
    assert set(ys) == set(range(12, 21))
    assert set(xs) == plain | mirrored
    assert 150 < sum(x in plain for x in xs) < 250


def test_crop_at_the_native_size_does_not_resample():
    image = Image.effect_noise((SIZE, SIZE), 60).convert("RGB")
    known = set(np.asarray(image)[:, :, 0].ravel()) | {0}
    result = preset("crop")(image, PREPROCESSING, np.random.default_rng(0))
    assert set(np.asarray(result)[:, :, 0].ravel()) <= known


def test_standard_shows_parts_of_35_to_100_per_cent():
    """In a ramp from left to right the range of values shows the width of the box, and likewise its height."""
    x, y = np.meshgrid(np.arange(200), np.arange(200))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    areas, mirrored = [], 0
    for seed in range(300):
        pixels = np.asarray(preset("standard")(image, PREPROCESSING, np.random.default_rng(seed)), dtype=float)
        step_x = (pixels[16, 24, 0] - pixels[16, 8, 0]) / 16
        step_y = (pixels[24, 16, 1] - pixels[8, 16, 1]) / 16
        areas.append(abs(step_x * step_y) * SIZE**2 / 200**2)
        mirrored += step_x < 0
    assert 0.33 <= min(areas) < 0.42
    assert 0.9 < max(areas) <= 1.05
    assert 110 < mirrored < 190


def test_strong_changes_more_than_geometry():
    image = Image.new("RGB", (SIZE, SIZE), (200, 120, 40))
    colours = Counter()
    for seed in range(40):
        generator = np.random.default_rng(seed)
        colours[preset("strong")(image, PREPROCESSING, generator).getpixel((SIZE // 2, SIZE // 2))] += 1
    assert len(colours) > 5


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 and 3.13
def test_worker_processes_change_nothing(data):
    for here, there in zip(batches(views(data, "strong")), batches(views(data, "strong"), workers=2), strict=True):
        assert isinstance(here, Batch)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_view_data_set_can_be_pickled(data):
    """Python 3.14 starts worker processes that way."""
    copy = pickle.loads(pickle.dumps(views(data, "strong")))
    assert torch.equal(copy[5, 2].image, views(data, "strong")[5, 2].image)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(data):
    dataset = views(data)
    loader = train_loader(dataset, batch_size=7, epoch=0, seed=0, views=None, workers=0, drop_last=False)
    order = torch.cat([batch.index for batch in loader]).tolist()
    assert sorted(order) == list(range(60))
    orders = [
        torch.cat([batch.index for batch in batches(dataset, epoch=epoch, seed=seed)]).tolist()
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert len(orders[0]) == 56


def test_views_count_epochs_or_recur(data):
    dataset = views(data)
    for epoch, recurring, expected in ((5, None, 5), (5, 3, 2), (3, 3, 0), (2, 1, 0)):
        assert {int(view) for b in batches(dataset, epoch=epoch, views=recurring) for view in b.view} == {expected}


def test_targets_belong_to_their_images(data):
    for batch in batches(views(data)):
        assert batch.target.tolist() == [data.train.targets[index] for index in batch.index.tolist()]
        assert torch.equal(batch.image[0], views(data)[int(batch.index[0]), 0].image)


def test_workers_start_alike_whatever_the_platform_prefers(data):
    dataset = views(data)
    loader = plain_loader(dataset, batch_size=10, workers=1)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert plain_loader(dataset, batch_size=10, workers=0).multiprocessing_context is None


def test_plain_loader_gives_all_in_order(data):
    dataset = ViewDataset(data.val, PREPROCESSING, "strong", 0)
    got = list(plain_loader(dataset, batch_size=10, workers=0))
    assert [len(batch.image) for batch in got] == [10, 10, 10, 3]
    assert torch.cat([batch.index for batch in got]).tolist() == list(range(33))
    assert {int(view) for batch in got for view in batch.view} == {-1}


def test_iterating_does_not_move_the_global_random_state(data):
    before = torch.get_rng_state()
    batches(views(data, "strong"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_data_is_refused(data):
    with pytest.raises(InputError, match=r"batch of 61 .* 60 images.*--batch-size 60"):
        train_loader(views(data), batch_size=61, epoch=0, seed=0, views=None, workers=0)


def test_an_unknown_preset_is_refused(data):
    with pytest.raises(InputError, match=r"unknown augmentation 'stron'.*strong"):
        views(data, "stron")


def test_in_memory_data_needs_no_workers(data):
    assert auto_workers(data) == 0
