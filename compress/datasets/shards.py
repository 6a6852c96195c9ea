"""WebDataset shards: ``wds/NAME:ROOT``.

A shard is a tar archive in which the files of one sample follow each other and share their name up to the first dot:
``0001.jpg`` with ``0001.cls`` or ``0001.json``.  An uncompressed archive can be read at any place, so an index of
places is all it takes to have the images by number; nothing is unpacked or copied.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from iekd.compress.datasets.folders import VAL_FOLDERS
from iekd.compress.datasets.raw import RawData
from iekd.compress.datasets.remote_shards import fetch_shards
from iekd.compress.datasets.source import Source, check_decodes, decode, unreadable_image
from iekd.errors import InputError

INFO_FILES = ("_info.json", "info.json")
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_SPLITS = {"train": ("train", "training"), "val": (*VAL_FOLDERS, "eval")}


class Place(NamedTuple):
    """Where an encoded image lies."""

    shard: Path
    key: str
    offset: int
    size: int


class ShardSource(Source):
    """Images inside of tar archives.

    Args:
        places: of the images.
        targets: class indices (N,).
        root: of the data set; identities are relative to it.
    """

    def __init__(self, places: Sequence[Place], targets: Sequence[int], root: Path) -> None:
        super().__init__(targets)
        self._places = places
        self._names = {shard: shard.relative_to(root) for shard in {place.shard for place in places}}
        self._changed = {shard: shard.stat().st_mtime_ns for shard in self._names}

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return decode(self._contents(index), self.label(index))

    def check(self, index: int) -> None:  # noqa: D102
        check_decodes(self._contents(index), self.label(index))

    def label(self, index: int) -> str:  # noqa: D102
        return f"{self._places[index].key} in {self._places[index].shard}"

    def identity(self, index: int) -> str:  # noqa: D102
        place = self._places[index]
        return f"{self._names[place.shard]}:{place.key}:{place.size}"

    def stamp(self, index: int) -> str:  # noqa: D102
        place = self._places[index]
        return f"{place.shard}:{self._changed[place.shard]}:{place.offset}:{place.size}"

    def _contents(self, index: int) -> bytes:
        place = self._places[index]
        try:
            with open(place.shard, "rb") as handle:
                handle.seek(place.offset)
                return handle.read(place.size)
        except OSError as error:
            raise unreadable_image(self.label(index), str(error.strerror)) from error


def load_shards(spec: str, name: str, root: str, cache_dir: Path) -> RawData:
    """The shards under ``root``, a folder or a URL; a URL's are copied to ``cache_dir`` once.

    Which shard is of which split says ``_info.json``, as timm reads it, or else a word in the shard's path.  Class
    names come from ``classnames.txt``, one a line, where there is one.

    Raises:
        InputError: no shards, a damaged one, or samples without an image or a class.
        EnvironmentMissingError: a URL, and the package ``webdataset`` is missing.
    """
    if not root:
        raise InputError(f"data '{spec}' does not say where the shards lie.", f"Write wds/{name}:ROOT.")
    folder = fetch_shards(spec, root, cache_dir) if "://" in root else Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"data folder '{root}' does not exist.", f"Check what follows the colon in '{spec}'.")
    splits, label_key = _find(folder, spec)
    train = _index(splits["train"], label_key, folder)
    val = _index(splits["val"], label_key, folder) if splits["val"] else None
    classes = _class_names(folder, [part for part in (train, val) if part])
    return RawData(spec, classes, train, val)


def read_info(folder: Path) -> dict[str, Any]:
    """What ``_info.json`` says; empty where there is none.

    Raises:
        InputError: it is not JSON.
    """
    for name in INFO_FILES:
        if (folder / name).is_file():
            try:
                info: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"cannot read {folder / name}: {error}.", "It must be JSON.") from error
            return info
    return {}


def _find(folder: Path, spec: str) -> tuple[dict[str, list[Path]], str]:
    """Shards of "train" and "val" (may be empty), and the field of the json files that holds the class, or ""."""
    info = read_info(folder).get("splits", {})
    if info:
        chosen: dict[str, dict[str, Any]] = {
            part: next((info[word] for word in words if word in info), {}) for part, words in _SPLITS.items()
        }
        shards = {part: [folder / file for file in split.get("filenames", ())] for part, split in chosen.items()}
        label_key = str(chosen["train"].get("alt_label", ""))
    else:
        shards, label_key = _by_words(folder), ""
    if not shards["train"]:
        raise InputError(
            f"data '{spec}' has no training shards under {folder}.",
            "Shards end in .tar; `train` and `val` in their paths, or splits in _info.json, tell them apart.",
        )
    return shards, label_key


def _by_words(folder: Path) -> dict[str, list[Path]]:
    words = {path: set(re.split("[^a-z]+", str(path.relative_to(folder)).lower())) for path in folder.rglob("*.tar")}
    train = sorted(path for path, found in words.items() if found & set(_SPLITS["train"]))
    by_val_word = ([path for path, found in words.items() if word in found] for word in _SPLITS["val"])
    val = sorted(next((paths for paths in by_val_word if paths), []))
    return {"train": train or sorted(set(words) - set(val)), "val": val}


def _index(shards: Iterable[Path], label_key: str, root: Path) -> ShardSource:
    places: list[Place] = []
    targets: list[int] = []
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as archive:
                for key, members in _samples(archive):
                    places.append(_place(shard, key, members))
                    targets.append(_target(archive, shard, key, members, label_key))
        except (tarfile.TarError, OSError) as error:
            raise InputError(
                f"cannot read shard {shard}: {error}.", "It must be a whole, uncompressed tar archive."
            ) from error
    return ShardSource(places, targets, root)


def _samples(archive: tarfile.TarFile) -> Iterable[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, members by ending) of each sample."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in archive:
        match = _MEMBER.match(member.name)
        if not member.isfile() or match is None:
            continue
        if match[1] != key and members:
            yield key, members
            members = {}
        key = match[1]
        members[match[2].lower()] = member
    if members:
        yield key, members


def _place(shard: Path, key: str, members: dict[str, tarfile.TarInfo]) -> Place:
    member = next((members[ending] for ending in _IMAGES if ending in members), None)
    if member is None:
        raise InputError(f"sample {key} in {shard} has no image.", f"Known endings: {' '.join(_IMAGES)}.")
    return Place(shard, key, member.offset_data, member.size)


def _target(
    archive: tarfile.TarFile, shard: Path, key: str, members: dict[str, tarfile.TarInfo], label_key: str
) -> int:
    try:
        if "cls" in members and not label_key:
            return int(_text(archive, members["cls"]))
        return int(json.loads(_text(archive, members["json"]))[label_key or "label"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"sample {key} in {shard} has no class index.",
            f"Each needs a number in {key}.cls, or as '{label_key or 'label'}' in {key}.json.",
        ) from error


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    handle = archive.extractfile(member)
    return handle.read().decode() if handle else ""


def _class_names(folder: Path, parts: Sequence[Source]) -> tuple[str, ...]:
    listing = folder / "classnames.txt"
    if listing.is_file():
        return tuple(line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(str(number) for number in range(max(int(part.targets.max(initial=0)) for part in parts) + 1))
