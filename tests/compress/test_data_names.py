"""Names of timm's create_dataset, each opened for real from small files on disk."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from image_files import picture, write_split

from iekd.compress.data import ImageData, load_data
from iekd.compress.datasets import hugging_face as hf
from iekd.compress.datasets import packages, tensorflow_names
from iekd.errors import EnvironmentMissingError, InputError


def open_data(spec: str, tmp_path: Path, **settings) -> ImageData:
    return load_data(spec, cache_dir=tmp_path / "cache", **settings)


def encoded(number: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, kind)
    return stream.getvalue()


def decoded(data: bytes) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


# torchvision


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


# WebDataset


def write_shard(path: Path, numbers: range, *, json_key: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            label = number % 3
            files = {"jpg": encoded(number)}
            if json_key:
                files["json"] = json.dumps({json_key: label}).encode()
            else:
                files["cls"] = str(label).encode()
            for ending, content in files.items():
                member = tarfile.TarInfo(f"set/{number:04d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_shards(root: Path) -> Path:
    write_shard(root / "tiny-train-0000.tar", range(9))
    write_shard(root / "tiny-train-0001.tar", range(9, 15))
    write_shard(root / "tiny-val-0000.tar", range(50, 56))
    return root


def write_info(root: Path, **extra: str) -> None:
    files = {"train": ["a/0.tar", "a/1.tar"], "validation": ["b/0.tar"], "test": ["unused.tar"]}
    splits = {
        name: {"name": name, "filenames": names, "shard_lengths": [3] * len(names), "num_samples": 3 * len(names)}
        | extra
        for name, names in files.items()
    }
    root.mkdir(exist_ok=True)
    (root / "_info.json").write_text(json.dumps({"splits": splits}))


def test_shards_are_read_in_place(tmp_path):
    root = write_shards(tmp_path / "shards")
    data = open_data(f"wds/tiny:{root}", tmp_path)
    assert (len(data.train), len(data.val)) == (15, 6)
    assert data.classes == ("0", "1", "2")
    for index in (0, 8, 9, 14):
        image, target = data.train[index]
        assert target == index % 3
        assert image.tobytes() == decoded(encoded(index))
    assert data.val[1][0].tobytes() == decoded(encoded(51))
    assert open_data(f"wds/tiny:{root}", tmp_path).digest == data.digest


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_shards_are_read_as_webdataset_reads_them(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    root = write_shards(tmp_path / "shards")
    data = open_data(f"wds/tiny:{root}", tmp_path)
    theirs = webdataset.WebDataset(
        [str(root / f"tiny-train-000{number}.tar") for number in (0, 1)], shardshuffle=False
    ).to_tuple("jpg", "cls")
    count = 0
    for index, (jpg, label) in enumerate(theirs):
        image, target = data.train[index]
        assert target == int(label)
        assert image.tobytes() == decoded(jpg)
        count += 1
    assert count == len(data.train)


def test_shards_without_a_split_take_a_fraction(tmp_path):
    write_shard(tmp_path / "shards" / "0.tar", range(30))
    with pytest.raises(InputError, match="--val-fraction"):
        open_data(f"wds/x:{tmp_path / 'shards'}", tmp_path)
    assert len(open_data(f"wds/x:{tmp_path / 'shards'}", tmp_path, val_fraction=0.2).val) == 6


def test_splits_and_class_field_come_from_the_info_file(tmp_path):
    root = tmp_path / "shards"
    write_info(root, alt_label="kind")
    for name, numbers in (("a/0", range(3)), ("a/1", range(3, 6)), ("b/0", range(6, 9))):
        write_shard(root / f"{name}.tar", numbers, json_key="kind")
    (root / "classnames.txt").write_text("ant\nbee\ncat\n")
    data = open_data(f"wds/tiny:{root}", tmp_path)
    assert (len(data.train), len(data.val)) == (6, 3)
    assert data.classes == ("ant", "bee", "cat")


def test_shards_behind_a_url_are_copied_once(tmp_path):
    root = tmp_path / "served"
    write_info(root)
    for name, numbers in (("a/0", range(3)), ("a/1", range(3, 6)), ("b/0", range(6, 9)), ("unused", range(9, 12))):
        write_shard(root / f"{name}.tar", numbers)
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        spec = f"wds/tiny:http://127.0.0.1:{server.server_port}"
        data = open_data(spec, tmp_path)
        assert (len(data.train), len(data.val)) == (6, 3)
        assert data.train[4][0].tobytes() == decoded(encoded(4))
        assert len(requests) == 5
        assert open_data(spec, tmp_path).digest == data.digest
        assert len(requests) == 5
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match=r"cannot read http://127.0.0.1:\d+/gone/_info.json: .*refused"):
        open_data(f"{spec}/gone", tmp_path)


def test_damaged_shards_and_samples_are_named(tmp_path):
    root = write_shards(tmp_path / "shards")
    shard = root / "tiny-train-0001.tar"
    whole = shard.read_bytes()
    start = whole.index(encoded(10))
    shard.write_bytes(whole[: start + 40] + bytes(len(encoded(10)) - 40) + whole[start + len(encoded(10)) :])
    with pytest.raises(InputError, match=f"cannot read image set/0010 in {shard}"):
        open_data(f"wds/x:{root}", tmp_path)
    assert open_data(f"wds/x:{root}", tmp_path, skip_bad_images=True).skipped == 1
    shard.write_bytes(whole[:700])
    with pytest.raises(InputError, match=f"cannot read shard {shard}"):
        open_data(f"wds/x:{root}", tmp_path)
    write_shard(shard, range(9, 15), json_key="other")
    with pytest.raises(InputError, match=f"sample set/0009 in {shard} has no class index"):
        open_data(f"wds/x:{root}", tmp_path)


# Hugging Face


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


# TensorFlow


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["x", "y"])
        features = {"image": tfds.features.Image(shape=(16, 16, 3)), "label": label}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(20), "test": self._generate_examples(8)}

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"image": np.full((16, 16, 3), 7 * number, np.uint8), "label": number % 2}
"""


def test_tensorflow_data(tmp_path):
    if importlib.util.find_spec("tensorflow_datasets") is None:
        pytest.skip("tensorflow-datasets is not installed")
    package = tmp_path / "code" / "tiny"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "README.md").touch()
    (package / "tiny_dataset_builder.py").write_text(BUILDER)
    root = tmp_path / "prepared"
    prepare = f"from tiny.tiny_dataset_builder import Builder; Builder(data_dir={str(root)!r}).download_and_prepare()"
    subprocess.run([sys.executable, "-c", prepare], cwd=package.parent, check=True, capture_output=True)
    data = open_data(f"tfds/tiny:{root}", tmp_path)
    assert data.classes == ("x", "y")
    assert (len(data.train), len(data.val)) == (20, 8)
    numbers = [int(np.asarray(data.train[index][0])[0, 0, 0]) // 7 for index in range(20)]
    assert sorted(numbers) == list(range(20))
    assert [number % 2 for number in numbers] == list(data.train.targets)
    with pytest.raises(InputError, match=r"cannot read data .*tfds build nothing"):
        open_data(f"tfds/nothing:{root}", tmp_path)


# Packages that are not there


@pytest.mark.parametrize(
    ("spec", "package"),
    [("hfds/x", "datasets"), ("hfids/x", "datasets"), ("wds/x:gs://x", "webdataset"), ("tfds/x", "tensorflow")],
)
def test_a_missing_package_names_its_pip_command(tmp_path, monkeypatch, spec, package):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(packages, "import_module", missing)
    monkeypatch.setattr(tensorflow_names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMissingError, match=f"pip install {package}$") as caught:
        open_data(spec, tmp_path)
    assert caught.value.exit_code == 3


def test_digits_and_folders_load_nothing_that_they_do_not_need():
    code = (
        "import sys, iekd.compress.data as data; data.load_data('digits');"
        "print([name for name in ('timm', 'torchvision', 'datasets', 'webdataset') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
