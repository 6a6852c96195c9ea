"""Folders of images, and what is done with any data: splits, subsets, checks, identity."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from image_files import picture, write_split, write_tree
from PIL import Image

from iekd.compress.data import ImageData, load_data
from iekd.compress.datasets import verify
from iekd.compress.datasets.splits import balanced_subset, stratified_split
from iekd.compress.views import ViewDataset, auto_workers, train_loader
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing


@pytest.fixture
def load(tmp_path):
    def load(root, **settings) -> ImageData:
        return load_data(f"folder:{root}", cache_dir=tmp_path / "cache", **settings)

    return load


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "test"])
def test_train_beside_val(tmp_path, load, val_name):
    data = load(write_split(tmp_path / "data", val_name=val_name))
    assert data.classes == ("ant", "bee", "cat")
    assert list(data.train.targets) == [0] * 6 + [1] * 6 + [2] * 6
    assert list(data.val.targets) == [0] * 3 + [1] * 3 + [2] * 3
    assert data.skipped == 0
    image, target = data.train[7]
    assert target == 1
    assert image.tobytes() == picture(7).tobytes()


def test_val_comes_before_test(tmp_path, load):
    root = write_split(tmp_path / "data")
    write_tree(root / "test", dict.fromkeys(("ant", "bee", "cat"), 5))
    assert len(load(root).val) == 9


def test_one_tree_is_split_by_class_and_seed(tmp_path, load):
    root = write_tree(tmp_path / "data", {"ant": 20, "bee": 10, "cat": 3})
    data = load(root, val_fraction=0.2)
    assert np.bincount(data.train.targets).tolist() == [16, 8, 2]
    assert np.bincount(data.val.targets).tolist() == [4, 2, 1]
    parts = [{part[i][0].tobytes() for i in range(len(part))} for part in (data.train, data.val)]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 33
    assert load(root, val_fraction=0.2).digest == data.digest
    assert load(root, val_fraction=0.2, seed=1).digest != data.digest


def test_a_train_folder_alone_is_split_too(tmp_path, load):
    write_tree(tmp_path / "data" / "train", {"ant": 5, "bee": 5})
    assert len(load(tmp_path / "data", val_fraction=0.4).val) == 4


def test_subfolders_belong_to_their_class_and_hidden_files_to_none(tmp_path, load):
    root = write_split(tmp_path / "data")
    (root / "train" / "ant" / "more").mkdir()
    picture(900).save(root / "train" / "ant" / "more" / "x.JPG")
    picture(901).save(root / "train" / "ant" / "._x.png")
    (root / "train" / ".git").mkdir()
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    assert np.bincount(load(root).train.targets).tolist() == [7, 6, 6]


def test_all_kinds_of_files_come_as_rgb(tmp_path, load):
    root = write_split(tmp_path / "data")
    pixels = np.linspace(0, 65535, 24 * 20).reshape(20, 24).astype(np.uint16)
    saved = {
        "a_grey.png": picture(1).convert("L"),
        "b_palette.gif": picture(1).convert("P"),
        "c_alpha.webp": picture(1).convert("RGBA"),
        "d_cmyk.jpg": picture(1).convert("CMYK"),
        "e_16bit.png": Image.fromarray(pixels),
        "f_bits.bmp": picture(1).convert("1"),
    }
    folder = root / "train" / "ant"
    for file in folder.iterdir():
        file.unlink()
    for name, image in saved.items():
        image.save(folder / name)
    data = load(root)
    images = [data.train[index][0] for index in range(len(saved))]
    assert {(image.mode, image.size) for image in images} == {("RGB", (24, 20))}
    sixteen = np.asarray(images[4])
    assert sixteen.min() == 0
    assert sixteen.max() == 255
    assert abs(sixteen.mean() - 127.5) < 1


def test_a_damaged_image_is_skipped_and_counted(tmp_path, load):
    root = write_split(tmp_path / "data", ending="jpg")
    for name in ("000", "007"):
        file = next((root / "train").glob(f"*/{name}.jpg"))
        file.write_bytes(file.read_bytes()[:-60])
    (root / "val" / "ant" / "999.jpg").write_bytes(b"")
    data = load(root, skip_bad_images=True)
    assert data.skipped == 3
    assert np.bincount(data.train.targets).tolist() == [5, 5, 6]
    assert len(data.val) == 9
    for source in (data.train, data.val):
        for index in range(len(source)):
            assert source[index][0].size == (24, 20)


def test_images_are_checked_once_and_again_when_they_change(tmp_path, load, monkeypatch):
    root = write_split(tmp_path / "data", ending="jpg")
    checked = []
    inner = verify._checked

    def counting(source, indices):
        checked.append(len(indices))
        return inner(source, indices)

    monkeypatch.setattr(verify, "_checked", counting)
    load(root)
    load(root)
    file = root / "train" / "bee" / "008.jpg"
    file.write_bytes(file.read_bytes()[:-60])
    assert load(root, skip_bad_images=True).skipped == 1
    assert load(root, skip_bad_images=True).skipped == 1
    assert checked == [18, 9, 0, 0, 1, 0, 1, 0]


def test_checking_reports_its_progress(tmp_path, load):
    told: list[tuple[int, int]] = []
    load(write_split(tmp_path / "data"), on_checked=lambda done, total: told.append((done, total)))
    assert told == [(18, 18), (9, 9)]


def test_without_a_writable_cache_data_is_checked_all_the_same(tmp_path):
    root = write_split(tmp_path / "data")
    (tmp_path / "file").write_text("in the way")
    data = load_data(f"folder:{root}", cache_dir=tmp_path / "file" / "cache")
    assert len(data.train) == 18


def test_digest_tells_data_apart_and_does_not_depend_on_place_or_time(tmp_path, load):
    root = write_split(tmp_path / "data")
    digest = load(root).digest
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    for file in moved.rglob("*.png"):
        os.utime(file, (1, 1))
    assert load(moved).digest == digest
    (moved / "train" / "ant" / "000.png").rename(moved / "train" / "ant" / "0000.png")
    assert load(moved).digest != digest
    assert load(root, limit=9).digest != digest


def test_limits_take_balanced_nested_subsets(tmp_path, load):
    root = write_tree(tmp_path / "data" / "train", {"ant": 20, "bee": 4, "cat": 20}).parent
    write_tree(root / "val", {"ant": 5, "bee": 5, "cat": 5}, first=500)
    data = load(root, limit=24, val_limit=6)
    assert np.bincount(data.train.targets).tolist() == [10, 4, 10]
    assert np.bincount(data.val.targets).tolist() == [2, 2, 2]
    small = load(root, limit=12)
    assert np.bincount(small.train.targets).tolist() == [4, 4, 4]
    large_set = {data.train[i][0].tobytes() for i in range(24)}
    assert all(small.train[i][0].tobytes() in large_set for i in range(12))
    assert len(load(root, limit=1000).train) == 44


@pytest.mark.parametrize(("side", "size"), [(20, 32), (32, 32), (70, 64), (81, 96), (500, 224)])
def test_default_size_follows_the_short_side(tmp_path, load, side, size):
    root = write_split(tmp_path / "data", train=1, val=1)
    for file in root.rglob("*.png"):
        Image.new("RGB", (side + 30, side), tuple(file.name.encode()[:3])).save(file)
    data = load(root)
    assert data.default_size == size
    assert data.augmentation == ("crop" if size <= 64 else "standard")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 and 3.13
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_in_mid_training_is_named_in_one_line(tmp_path, load, workers):
    data = load(write_split(tmp_path / "data"))
    gone = tmp_path / "data" / "train" / "bee" / "007.png"
    gone.unlink()
    dataset = ViewDataset(data.train, Preprocessing(size=8), "crop", 0)
    with pytest.raises(InputError) as caught:
        list(train_loader(dataset, batch_size=6, epoch=0, seed=0, views=None, workers=workers))
    assert caught.value.message == f"cannot read image {gone}: No such file or directory."
    assert caught.value.hint.startswith("Replace or remove it")


def test_files_are_worth_workers(tmp_path, load):
    expected = min(4, len(os.sched_getaffinity(0)))
    assert auto_workers(load(write_split(tmp_path / "data"))) == expected


def test_digits_are_always_the_same():
    data = load_data("digits", seed=5)
    assert (data.name, data.default_size, data.augmentation) == ("digits", 64, "digits")
    assert data.classes == tuple("0123456789")
    assert len(data.train) + len(data.val) == 1797
    share = np.bincount(data.val.targets) / (np.bincount(data.train.targets) + np.bincount(data.val.targets))
    assert np.all(abs(share - 0.2) < 0.01)
    image, target = data.val[0]
    assert (image.mode, image.size, target) == ("RGB", (8, 8), data.val.targets[0])
    assert data.digest == load_data("digits", seed=6).digest


def test_split_and_subset_are_seeded():
    targets = np.random.default_rng(0).integers(0, 4, 200)
    names = tuple("abcd")
    for draw in (
        lambda seed: stratified_split(targets, 0.3, seed, names)[1],
        lambda s: balanced_subset(targets, 40, s, 4),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))
        assert np.all(np.diff(draw(1)) > 0)
