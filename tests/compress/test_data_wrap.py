"""The user's own data sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_files import picture
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from iekd.compress.data import wrap_datasets
from iekd.compress.views import ViewDataset, train_loader
from iekd.errors import InputError
from iekd.models.preprocessing import Preprocessing


class Pairs(Dataset):
    """Pictures of two classes, in the form that ``form`` gives them."""

    def __init__(self, form=lambda image: image, count=6, first=0, label=lambda index: index % 2, **attributes):
        self.form, self.count, self.first, self.label = form, count, first, label
        self.__dict__.update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.form(picture(self.first + index)), self.label(index)


def to_float(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


FORMS = {
    "PIL": lambda image: image,
    "array": np.asarray,
    "uint8 tensor": lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1),
    "float tensor": to_float,
    "double tensor": lambda image: to_float(image).double(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form):
    data = wrap_datasets(Pairs(FORMS[form]), Pairs(FORMS[form], first=50))
    assert data.classes == ("0", "1")
    assert data.skipped == 0
    for index in range(6):
        image, target = data.train[index]
        assert image.tobytes() == picture(index).tobytes()
        assert target == index % 2
    assert data.digest == wrap_datasets(Pairs(), Pairs(first=50)).digest


def test_grey_arrays_become_rgb():
    data = wrap_datasets(*[Pairs(lambda image: np.asarray(image.convert("L"))[..., None])] * 2)
    assert data.train[0][0].mode == "RGB"
    assert data.train[0][0].size == picture(0).size


def test_tensor_datasets_train():
    images, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 3
    data = wrap_datasets(TensorDataset(images, labels), TensorDataset(images, labels), classes=["x", "y", "z"])
    assert data.in_memory
    dataset = ViewDataset(data.train, Preprocessing(size=16), data.augmentation, 0)
    batch = next(iter(train_loader(dataset, batch_size=12, epoch=0, seed=0, views=None, workers=0)))
    assert sorted(batch.target.tolist()) == sorted(labels.tolist())


def test_names_come_from_the_argument_or_the_data():
    assert wrap_datasets(Pairs(classes=["a", "b"]), Pairs()).classes == ("a", "b")
    assert wrap_datasets(Pairs(classes=["a", "b"]), Pairs(), classes=["c", "d"]).classes == ("c", "d")
    with pytest.raises(InputError, match="only in train is 'b'; only in val is 'c'"):
        wrap_datasets(Pairs(classes=["a", "b"]), Pairs(classes=["a", "c"]))
    with pytest.raises(InputError, match="another order"):
        wrap_datasets(Pairs(classes=["a", "b"]), Pairs(classes=["b", "a"]))
    with pytest.raises(InputError, match="labels up to 1 but 1 class names"):
        wrap_datasets(Pairs(), Pairs(), classes=["a"])


def test_targets_are_believed_only_if_the_items_agree():
    right, wrong = [index % 2 for index in range(6)], [0] * 6
    asked: list[int] = []

    def label(index):
        asked.append(index)
        return index % 2

    assert list(wrap_datasets(Pairs(targets=wrong), Pairs()).train.targets) == right
    many = Pairs(count=400, label=label, targets=[index % 2 for index in range(400)])
    assert len(wrap_datasets(many, Pairs()).train.targets) == 400
    assert len(set(asked)) < 300
    ragged = Pairs(targets=[[1], [2, 3], [], [], [], []])
    assert list(wrap_datasets(ragged, Pairs()).train.targets) == right


def test_random_images_are_refused():
    noise = np.random.default_rng(0)
    with pytest.raises(InputError, match="differs from one reading to the next"):
        wrap_datasets(Pairs(lambda _: noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)), Pairs())


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Pairs(lambda image: to_float(image) * 2 - 1), "not normalised"),
        (Pairs(lambda image: to_float(image) * np.nan), "values from nan"),
        (Pairs(lambda image: to_float(image)[None]), "shape"),
        (Pairs(lambda image: np.asarray(image).astype(float)), "float64 array"),
        (Pairs(lambda image: np.asarray(image)[..., :2]), "shape"),
        (Pairs(lambda image: "path.jpg"), "type str"),
        (Pairs(label=lambda index: "cat"), "class of item 0 of train is 'cat'"),
        (Pairs(label=lambda index: 0.5), "counted from 0"),
        (Pairs(label=lambda index: -1), "counted from 0"),
        (Pairs(label=lambda index: torch.zeros(2)), "counted from 0"),
        (Pairs(label=lambda index: 0), "one class"),
        (Pairs(label=lambda index: 2 * (index % 2)), "no images of '1' in train"),
        (Pairs(count=0), "empty"),
        (iter([1]), "cannot be indexed"),
        ([1, 2], "no pair"),
    ],
)
def test_unusable_data_is_refused(dataset, message):
    val = Pairs(label=lambda index: 0) if "one class" in message else Pairs()
    with pytest.raises(InputError, match=message):
        wrap_datasets(dataset, val)


def test_an_image_file_that_cannot_be_read_is_an_input_error(tmp_path):
    class Files(Pairs):
        def __getitem__(self, index):
            from PIL import Image

            return Image.open(tmp_path / "gone.png"), 0

    with pytest.raises(InputError, match="cannot read image 0 of train"):
        wrap_datasets(Files(), Pairs())


@pytest.mark.parametrize("seed", range(10))
def test_a_random_flip_is_noticed_though_it_is_the_same_twice_half_of_the_time(seed):
    coin = np.random.default_rng(seed)
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    with pytest.raises(InputError, match="differs from one reading to the next"):
        wrap_datasets(Pairs(lambda image: image.transpose(flip) if coin.random() < 0.5 else image, count=60), Pairs())


def test_class_names_of_any_kind_are_names():
    for classes in (np.array(["x", "y"]), [0, 1], ("x", "y")):
        assert wrap_datasets(Pairs(), Pairs(), classes=classes).classes == tuple(map(str, classes))
    with pytest.raises(InputError, match="two classes are called 'x'"):
        wrap_datasets(Pairs(), Pairs(), classes=["x", "x"])
