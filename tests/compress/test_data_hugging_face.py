"""Hugging Face data sets from files on disk, as a whole and streamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import decoded, encoded, picture, write_split

from iekd.compress.data import ImageData, load_data
from iekd.compress.datasets import hugging_face as hf
from iekd.errors import InputError


def open_data(spec: str, tmp_path: Path, **settings) -> ImageData:
    return load_data(spec, cache_dir=tmp_path / "cache", **settings)


@pytest.fixture
def hugging_face(tmp_path):
    """A folder of parquet files: 12 training and 6 test images, in columns called as CIFAR-10's are on the hub."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    root = tmp_path / "hf"
    root.mkdir()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for part, numbers in (("train", range(12)), ("test", range(50, 56))):
        images = [{"bytes": encoded(number), "path": None} for number in numbers]
        rows = {"img": images, "label": [number % 3 for number in numbers]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{part}-00000.parquet")
    return root


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_hugging_face_files(tmp_path, hugging_face, prefix):
    """hfids is read as a stream, once, and kept without loss."""
    spec = f"{prefix}/{hugging_face}:{tmp_path / 'downloads'}"
    data = open_data(spec, tmp_path)
    assert data.classes == ("a", "b", "c")
    assert (len(data.train), len(data.val)) == (12, 6)
    for index in (0, 7, 11):
        image, target = data.train[index]
        assert target == index % 3
        assert image.tobytes() == decoded(encoded(index))
    assert data.val[2][0].tobytes() == decoded(encoded(52))
    assert open_data(spec, tmp_path).digest == data.digest


def test_a_stream_is_read_once(tmp_path, hugging_face, monkeypatch):
    spec = f"hfids/{hugging_face}:{tmp_path / 'downloads'}"
    open_data(spec, tmp_path)
    monkeypatch.setattr(hf, "_encoded", None)
    assert len(open_data(spec, tmp_path).train) == 12


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path, hugging_face, monkeypatch):
    def broken(_, name):
        if name.startswith("5 "):
            raise ConnectionError("gone")
        return b""

    spec = f"hfids/{hugging_face}:{tmp_path / 'downloads'}"
    with monkeypatch.context() as patch:
        patch.setattr(hf, "_encoded", broken)
        with pytest.raises(InputError, match=r"cannot read data .*: gone"):
            open_data(spec, tmp_path)
    assert len(open_data(spec, tmp_path).train) == 12


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_labels_without_declared_names_are_their_own_names(tmp_path, prefix):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    for part, labels in (("train", ["dog", "ant", "ant"]), ("validation", ["ant", "dog", "dog"])):
        rows = {"image": [{"bytes": encoded(number), "path": None} for number in range(3)], "label": labels}
        file = tmp_path / "hf" / f"{part}.parquet"
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    data = open_data(f"{prefix}/{tmp_path / 'hf'}:{tmp_path / 'downloads'}", tmp_path)
    assert data.classes == ("ant", "dog")
    assert list(data.train.targets) == [1, 0, 0]
    assert list(data.val.targets) == [0, 1, 1]


def test_hugging_face_image_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    root = write_split(tmp_path / "data", val_name="test")
    data = open_data(f"hfds/{root}:{tmp_path / 'downloads'}", tmp_path)
    assert data.classes == ("ant", "bee", "cat")
    assert data.train[7][0].tobytes() == picture(7).tobytes()
    (root / "train" / "bee" / "007.png").write_text("")
    with pytest.raises(InputError, match="cannot read image 7 of hfds/"):
        open_data(f"hfds/{root}:{tmp_path / 'downloads2'}", tmp_path)


def test_unlabelled_parts_are_refused(tmp_path, hugging_face):
    import datasets

    file = str(hugging_face / "test-00000.parquet")
    part = datasets.Dataset.from_parquet(file, cache_dir=tmp_path / "read")
    labels = [-1] * len(part)
    changed = part.remove_columns("label").add_column("label", labels).cast_column("label", part.features["label"])
    changed.to_parquet(file)
    with pytest.raises(InputError, match="image of class -1 in val"):
        open_data(f"hfds/{hugging_face}:{tmp_path / 'downloads'}", tmp_path)


def test_missing_columns_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path / "text"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_parquet(folder / "train.parquet")
    with pytest.raises(InputError, match="has no columns of images; its columns are 'text', 'label'"):
        open_data(f"hfds/{folder}:{tmp_path / 'downloads'}", tmp_path)
