from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import arguments, command, refused

from iekd.errors import RunFolderError
from iekd.files import atomic_file, atomic_folder, disk_errors, sha256_of, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ValueError, match="invalid literal"), atomic_file(target) as temporary:
        temporary.write_text(f"half {int('boom')}")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for content in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / "x").write_text(content)
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(target) as temporary:
        raise RuntimeError("boom")
    assert (target / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "x").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "x").read_text() == "new"


def test_only_a_full_disk_is_translated(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="No space left"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "x")
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "x")


def test_the_digest_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = sha256_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = sha256_of(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, sha256_of(tmp_path)}) == 3


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 24 MB: room for a teacher's checkpoint of resnet10t's size, not for two."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tiny_disk: Path, tmp_path: Path) -> None:
    """Fill it in the middle of a run, then make room: what was finished before is used."""
    flags = arguments(teacher="mobilenetv3_small_050", out=str(tiny_disk / "run"))
    assert command("teacher", *flags).returncode == 0
    kept = sha256_of(tiny_disk / "run" / "teacher")
    free = os.statvfs(tiny_disk)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - 300_000))
    refused(command(*flags), "No space left on device", "Free some space")
    assert sha256_of(tiny_disk / "run" / "teacher") == kept
    assert not list((tiny_disk / "run").rglob("*.tmp"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=200m", str(tiny_disk)], check=True)
    result = command(*flags)
    assert result.returncode == 0, result.stderr
    assert "Train the teacher  from the earlier run" in result.stdout
