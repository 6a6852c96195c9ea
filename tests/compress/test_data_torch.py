"""torchvision's data sets, opened from small files on disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from image_files import picture, write_split

from iekd.compress.data import ImageData, load_data
from iekd.errors import InputError


def open_data(spec: str, tmp_path: Path, **settings) -> ImageData:
    return load_data(spec, cache_dir=tmp_path / "cache", **settings)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The files of CIFAR-10 with six images each; torchvision checks sums, which real data alone has."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list] + [name for name, _ in CIFAR10.test_list]
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 10, 3072), dtype=np.uint8)
    for name, part in zip(names, pixels, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": part, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{number}" for number in range(10)]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).exists())
    return pixels


def test_torchvision_arrays(tmp_path, monkeypatch):
    pixels = write_cifar(tmp_path / "root", monkeypatch)
    data = open_data(f"torch/cifar10:{tmp_path / 'root'}", tmp_path)
    assert data.classes == tuple(f"class{number}" for number in range(10))
    assert (len(data.train), len(data.val)) == (50, 10)
    assert (data.default_size, data.augmentation, data.in_memory) == (32, "crop", True)
    image, target = data.train[13]
    assert target == 3
    assert np.array_equal(np.asarray(image), pixels[1, 3].reshape(3, 32, 32).transpose(1, 2, 0))


def test_handwriting_is_not_mirrored(tmp_path):
    """MNIST's own file format: a header of big-endian sizes, then bytes."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = np.array([0x801, count], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    data = open_data(f"torch/mnist:{tmp_path}", tmp_path)
    assert (len(data.train), len(data.val), data.augmentation) == (30, 10, "digits")
    assert data.train[0][0].mode == "RGB"


def test_torchvision_files_are_checked_like_folders(tmp_path):
    for part, count in (("2021_train", 4), ("2021_valid", 2)):
        for number, name in enumerate(("00000_Animalia_A_b_c_d_e_f", "00001_Plantae_A_b_c_d_e_f")):
            folder = tmp_path / "root" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(10 * number + index).save(folder / f"{index}.jpg")
    spec = f"torch/inaturalist:{tmp_path / 'root'}"
    data = open_data(spec, tmp_path)
    assert data.classes[1].startswith("00001_Plantae")
    assert list(data.train.targets) == [0] * 4 + [1] * 4
    bad = tmp_path / "root" / "2021_train" / "00001_Plantae_A_b_c_d_e_f" / "2.jpg"
    bad.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read image .*2\.jpg"):
        open_data(spec, tmp_path)


def test_torchvision_image_folder_is_a_folder(tmp_path):
    root = write_split(tmp_path / "data")
    assert open_data(f"torch/image_folder:{root}", tmp_path).digest == open_data(f"folder:{root}", tmp_path).digest


def test_torchvision_data_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot open torchvision's cifar10 .* download=True"):
        open_data(f"torch/cifar10:{tmp_path}", tmp_path)
