"""What cannot be used is refused in a line that says what, where, and what to do next."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import picture, write_split, write_tree

from iekd.compress.data import load_data
from iekd.errors import InputError


def refusal(spec: object, tmp_path, **settings) -> str:
    with pytest.raises(InputError) as caught:
        load_data(str(spec), cache_dir=tmp_path / "cache", **settings)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_names(tmp_path):
    assert "Did you mean digits" in refusal("digit", tmp_path)
    assert "torch/cifar10:ROOT" in refusal("cifar10", tmp_path)
    assert "folder:PATH" in refusal("nonsense", tmp_path)
    assert "Did you mean cifar10" in refusal(f"torch/cifer10:{tmp_path}", tmp_path)


def test_a_path_without_its_kind(tmp_path):
    assert f"Did you mean --data folder:{tmp_path}?" in refusal(tmp_path, tmp_path)


def test_missing_paths(tmp_path):
    gone = tmp_path / "gone"
    for spec in (f"folder:{gone}", f"torch/cifar10:{gone}", f"wds/x:{gone}"):
        assert f"'{gone}' does not exist" in refusal(spec, tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(f"folder:{tmp_path / 'file'}", tmp_path)
    assert "does not exist" in refusal("folder:", tmp_path)
    for spec in ("torch/cifar10", "wds/x"):
        assert "does not say where" in refusal(spec, tmp_path)


def test_a_folder_without_images(tmp_path):
    assert "no images" in refusal(f"folder:{tmp_path}", tmp_path)
    (tmp_path / "data" / "ant").mkdir(parents=True)
    (tmp_path / "data" / "ant" / "readme.txt").write_text("")
    assert "no images" in refusal(f"folder:{tmp_path / 'data'}", tmp_path)


def test_images_outside_of_class_folders(tmp_path):
    picture(0).save(tmp_path / "0.png")
    assert "none in a class folder" in refusal(f"folder:{tmp_path}", tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    root = write_split(tmp_path / "data")
    (root / "train" / "dog").mkdir()
    assert str(root / "train" / "dog") in refusal(f"folder:{root}", tmp_path)


def test_one_class_is_named(tmp_path):
    write_tree(tmp_path / "data", {"ant": 4})
    assert "one class, 'ant'" in refusal(f"folder:{tmp_path / 'data'}", tmp_path, val_fraction=0.5)


def test_differing_classes_are_named(tmp_path):
    root = write_split(tmp_path / "data")
    write_tree(root / "val", {"eel": 1, "fox": 1})
    (root / "val" / "bee").rename(root / "val" / "bees")
    message = refusal(f"folder:{root}", tmp_path)
    assert "only in train/ is 'bee'" in message
    assert "only in val/ are 'bees', 'eel', 'fox'" in message


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_an_unreadable_image_is_named(tmp_path, ending):
    root = write_split(tmp_path / "data", ending=ending)
    bad = root / "val" / "bee" / f"504.{ending}"
    bad.write_bytes(bad.read_bytes()[:-60])
    message = refusal(f"folder:{root}", tmp_path)
    assert str(bad) in message
    assert "--skip-bad-images" in message


def test_a_file_that_is_no_image_and_a_dangling_link_are_named(tmp_path):
    root = write_split(tmp_path / "data")
    fake = root / "train" / "ant" / "zzz.png"
    fake.write_text("<html>")
    assert f"{fake}: it is not an image" in refusal(f"folder:{root}", tmp_path)
    fake.unlink()
    fake.symlink_to(tmp_path / "nowhere.png")
    assert f"{fake}: No such file" in refusal(f"folder:{root}", tmp_path)
    assert load_data(f"folder:{root}", cache_dir=tmp_path / "c", skip_bad_images=True).skipped == 1


def test_a_class_that_skipping_empties_is_named(tmp_path):
    root = write_split(tmp_path / "data", val=1)
    (root / "val" / "bee" / "501.png").write_text("")
    assert "no images of 'bee' in val" in refusal(f"folder:{root}", tmp_path, skip_bad_images=True)


def test_a_missing_split_asks_for_a_fraction(tmp_path):
    write_tree(tmp_path / "data", {"ant": 4, "bee": 4})
    assert "--val-fraction" in refusal(f"folder:{tmp_path / 'data'}", tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, np.nan])
def test_fractions_outside_of_0_to_1(tmp_path, fraction):
    write_tree(tmp_path / "data", {"ant": 4, "bee": 4})
    assert "not between 0 and 1" in refusal(f"folder:{tmp_path / 'data'}", tmp_path, val_fraction=fraction)


def test_a_fraction_for_data_that_is_split_already(tmp_path):
    assert "Leave out --val-fraction" in refusal("digits", tmp_path, val_fraction=0.2)
    root = write_split(tmp_path / "data")
    assert "Leave out --val-fraction" in refusal(f"folder:{root}", tmp_path, val_fraction=0.2)


def test_a_class_too_small_to_split_is_named(tmp_path):
    write_tree(tmp_path / "data", {"ant": 4, "bee": 1})
    assert "class 'bee' has one image" in refusal(f"folder:{tmp_path / 'data'}", tmp_path, val_fraction=0.2)


def test_limits_below_the_number_of_classes(tmp_path):
    assert "--train-limit 9" in refusal("digits", tmp_path, limit=9)
    assert "--val-limit 3" in refusal("digits", tmp_path, val_limit=3)
