"""Files that are either whole or absent.

What a later stage or a resumed run reads is written beside its place and renamed into it, so a process killed
at any instant leaves the previous version or none, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iekd.errors import InputError, RunFolderError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left on device" into a message; every other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise RunFolderError(
            f"cannot write {path}: {os.strerror(error.errno)}.",
            "Free some space and start the same command again: it goes on from the last finished epoch.",
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success it takes the place of ``path``.

    All that ``path`` held is deleted then: whoever calls this knows that it may be.  A link is followed, and stays.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with disk_errors(path):
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_output_file(output: Path, *sources: Path) -> None:
    """Refuse a file to write that could not be written, or would destroy what it is made from.

    Asked before anything is computed: such a file is renamed into its place at the very end.

    Args:
        output: the file to write; one that exists is replaced.
        sources: files and folders that are read.

    Raises:
        InputError: it is a folder, lies below a file or where this user may not write, or is a source or a part of one.
    """
    if output.is_dir():
        raise InputError(f"{output} is a folder, and a file is to be written.", "Give the file's name, too.")
    _refuse_place(output, sources)


def refuse_output_folder(output: Path, *sources: Path) -> None:
    """Refuse a folder to write that could not be made, or would destroy what it is made from; as for a file.

    Args:
        output: the folder to write.
        sources: files and folders that are read.

    Raises:
        InputError: it is a file, lies below one or where this user may not write, or is a source, a part of one, or
            around one.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file, and a folder is to be written.", "Give another folder.")
    _refuse_place(output, sources)


def _refuse_place(output: Path, sources: tuple[Path, ...]) -> None:
    """Links are resolved, for another spelling of a path is the same place."""
    place = output.resolve()
    for source in sources:
        given = source.resolve()
        if place == given:
            raise InputError(f"{output} is read, and writing there would destroy it.", "Give another output.")
        if given in place.parents:
            raise InputError(f"{output} lies in {source}, which is read.", "Give an output outside of it.")
        if place in given.parents:
            raise InputError(f"{source}, which is read, lies in {output}.", "Give an output beside it.")
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{output} cannot be written: {above} is a file.", "Give an output in a folder.")
    refuse_unwritable(output, place if place.is_dir() else above)  # a folder that is there may be all one may write in


def refuse_unwritable(output: Path, folder: Path) -> None:
    """Raise InputError unless this process may write in ``folder``, which ``output`` needs."""
    if not may_write(folder):
        raise InputError(f"{output} cannot be written: no permission to write in {folder}.", "Give another output.")


def may_write(folder: Path) -> bool:
    """May this process make and delete files in a folder?"""
    return os.access(folder, os.W_OK | os.X_OK)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files (names and contents, in sorted order), as hexadecimal."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file != path:
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with open(file, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
