"""From the name of a data set to its reader.

The names after ``digits`` and ``folder:PATH`` are those of timm's ``create_dataset``; what follows the first colon says
where the data lies.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from iekd.compress.datasets.raw import RawData
from iekd.errors import InputError, unknown_name

Reader = Callable[[str, str, str, Path], RawData]
"""(spec, name without its prefix, root or "", cache folder) -> data."""

_READERS = {
    "torch": ("torch_names", "load_torchvision"),
    "hfds": ("hugging_face", "load_hugging_face"),
    "hfids": ("hugging_face", "load_hugging_face_stream"),
    "tfds": ("tensorflow_names", "load_tensorflow"),
    "wds": ("shards", "load_shards"),
}
_FORMS = ("digits", "folder:PATH", "torch/cifar10:ROOT", "hfds/NAME", "hfids/NAME", "tfds/NAME:ROOT", "wds/NAME:ROOT")


def read(spec: str, cache_dir: Path) -> RawData:
    """The data set called ``spec``; its reader, and what that imports, is loaded only now.

    Raises:
        InputError: an unknown name, or there is no such data.
        EnvironmentMissingError: a package that this kind of data needs is not installed.
    """
    if spec == "digits":
        from iekd.compress.datasets.digits import load_digits

        return load_digits()
    name, _, root = spec.partition(":")
    if name == "folder":
        from iekd.compress.datasets.folders import load_folder

        return load_folder(root)
    prefix, slash, rest = name.partition("/")
    if slash and prefix.lower() in _READERS:
        module, function = _READERS[prefix.lower()]
        reader: Reader = getattr(import_module(f"iekd.compress.datasets.{module}"), function)
        return reader(spec, rest, root, cache_dir)
    if Path(spec).expanduser().exists():
        raise InputError(f"data '{spec}' is a path without its kind.", f"Did you mean --data folder:{spec}?")
    raise unknown_name("data set", spec, _FORMS)
