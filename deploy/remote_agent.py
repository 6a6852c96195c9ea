"""The little program that :mod:`iekd.deploy.remote` runs on the board, by ``python3``, before any bundle is there.

Standard library only; Python 3.6 suffices to be told that it is too old.  Each command prints one line of JSON; what
goes wrong is ``{"error": KIND, "detail": TEXT}`` with KIND one of disk, busy, denied, damaged.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

MARGIN = 64 << 20
"""Bytes that must stay free beside the bundle, for engines and results."""


class Failure(Exception):  # noqa: N818 - an answer, not a defect
    """Something that the caller tells the user."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def probe(folder: Path, digest: str, size: str, unpacked: str) -> "dict[str, object]":
    """What is there already: Python's version, and the bundle, whole or a first part of it.

    The copy is named after its digest, so that only a copy of the same bundle is gone on with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle, part = _places(folder, digest)
    offset, prefix, whole = 0, "", bundle.exists() and sha256(bundle) == digest
    if not whole and part.exists():
        offset, prefix = part.stat().st_size, sha256(part)
    free = shutil.disk_usage(str(folder)).free
    needed = int(unpacked) + MARGIN + (0 if whole else int(size) - offset)
    if free < needed:
        raise Failure("disk", f"{free >> 20} MiB free for {folder}, {(needed >> 20) + 1} MiB needed")
    return {"python": list(sys.version_info[:3]), "whole": whole, "offset": offset, "prefix": prefix}


def receive(folder: Path, digest: str, offset: str) -> "dict[str, object]":
    """Append standard input to the copy from ``offset`` on; once its digest is right, it is the bundle."""
    bundle, part = _places(folder, digest)
    with open(part, "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure("busy", str(part)) from None
        handle.truncate(int(offset))
        shutil.copyfileobj(sys.stdin.buffer, handle, 1 << 18)
        handle.flush()
        os.fsync(handle.fileno())
        if sha256(part) != digest:
            raise Failure("damaged", f"{part.stat().st_size} bytes arrived")
        os.replace(part, bundle)
    return {}


def unpack(folder: Path, digest: str) -> "dict[str, object]":
    """Unpack the bundle; files that are right already stay, and so do engines, results and traces of earlier runs."""
    bundle, _ = _places(folder, digest)
    root = folder.resolve()
    with zipfile.ZipFile(str(bundle)) as archive:
        for entry in archive.infolist():
            target = (root / entry.filename).resolve()
            if root not in target.parents:
                raise Failure("damaged", f"{entry.filename} lies outside")
            content = archive.read(entry)
            if target.exists() and sha256(target) == hashlib.sha256(content).hexdigest():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(target.name + ".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, target)
        top = archive.namelist()[0].split("/")[0]
    for other in folder.glob("*.bundle.*"):
        if not other.name.startswith(digest[:16]):
            other.unlink()
    return {"folder": str(folder / top)}


def sha256(path: Path) -> str:
    """The SHA-256 of a file as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _places(folder: Path, digest: str) -> "tuple[Path, Path]":
    """Of the whole bundle, and of the copy that is under way."""
    return folder / f"{digest[:16]}.bundle.zip", folder / f"{digest[:16]}.bundle.part"


def main(command: str, folder: str, *arguments: str) -> None:
    """Run one command and print its answer."""
    commands: dict[str, Callable[..., dict[str, object]]] = {"probe": probe, "receive": receive, "unpack": unpack}
    try:
        answer = commands[command](Path(folder), *arguments)
    except Failure as failure:
        answer = {"error": failure.kind, "detail": failure.detail}
    except OSError as error:
        kind = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "denied"
        answer = {"error": kind, "detail": str(error)}
    except zipfile.BadZipFile as error:
        answer = {"error": "damaged", "detail": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
