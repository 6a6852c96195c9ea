"""Is the bundle whole?  Every file against the SHA-256 that was written when the bundle was made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import DeviceError
from .files import read_json

MANIFEST = "manifest.json"
FORMAT = 1
_AGAIN = "Copy the bundle to the board again."


def make_manifest(name: str, contents: dict[str, bytes]) -> dict[str, Any]:
    """The manifest of files given as relative POSIX path and content.

    Args:
        name: of the model.
        contents: of every file but the manifest itself.
    """
    files = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for path, content in sorted(contents.items())
    }
    return {"format": FORMAT, "name": name, "files": files}


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of the bundle in ``folder``; returns the manifest.

    Raises:
        DeviceError: the first file that is missing or damaged, by name; or a manifest that is itself unreadable.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DeviceError(f"{folder / MANIFEST} is no manifest of a bundle.", _AGAIN)
    if manifest.get("format") != FORMAT:
        raise DeviceError(
            f"the bundle has format {manifest.get('format')!r}; this program knows {FORMAT}.",
            "Make the bundle and its run.py with one version of iekd-compress.",
        )
    for path, entry in manifest["files"].items():
        _check(folder, path, entry)
    return manifest


def _check(folder: Path, path: str, entry: Any) -> None:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not isinstance(entry, dict):
        raise DeviceError(f"{folder / MANIFEST} is damaged at {path!r}.", _AGAIN)
    file = folder / parts
    if not file.is_file():
        raise DeviceError(f"{path} is missing from the bundle in {folder}.", _AGAIN)
    if file.stat().st_size != entry.get("bytes") or sha256_of(file) != entry.get("sha256"):
        raise DeviceError(f"{path} is damaged: it is not the file that the bundle was made with.", _AGAIN)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in _blocks(handle):
            digest.update(block)
    return digest.hexdigest()


def _blocks(handle: Any) -> Iterable[bytes]:
    return iter(lambda: handle.read(1 << 20), b"")
