"""WebDataset shards, in a folder and behind a URL."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from image_files import decoded, encoded

from iekd.compress.data import ImageData, load_data
from iekd.errors import InputError


def open_data(spec: str, tmp_path: Path, **settings) -> ImageData:
    return load_data(spec, cache_dir=tmp_path / "cache", **settings)


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
