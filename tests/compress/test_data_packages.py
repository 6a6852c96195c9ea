"""TensorFlow data, and packages that are not there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iekd.compress.data import ImageData, load_data
from iekd.compress.datasets import packages, tensorflow_names
from iekd.errors import EnvironmentMissingError, InputError


def open_data(spec: str, tmp_path: Path, **settings) -> ImageData:
    return load_data(spec, cache_dir=tmp_path / "cache", **settings)


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
