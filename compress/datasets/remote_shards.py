"""WebDataset shards behind a URL: copied byte for byte, once, so that they can be read at any place."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.request
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from iekd.compress.datasets.packages import need
from iekd.errors import InputError
from iekd.files import atomic_file

_TIMEOUT_S = 30


def fetch_shards(spec: str, url: str, cache_dir: Path) -> Path:
    """The folder in ``cache_dir`` that holds what lies at ``url``; a copy that was interrupted goes on by whole shards.

    Args:
        spec: the data set, for messages.
        url: of the folder that holds ``_info.json`` and the shards it lists; what is not plain HTTP is left to the
            package ``webdataset``, which knows ``gs:``, ``hf:`` and more.
        cache_dir: where the copy is kept.

    Raises:
        InputError: something at ``url`` cannot be read.
        EnvironmentMissingError: the package ``webdataset`` is needed and missing.
    """
    folder = cache_dir / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        _copy(spec, f"{url.rstrip('/')}/_info.json", folder / "_info.json")
        info: dict[str, Any] = json.loads((folder / "_info.json").read_text(encoding="utf-8"))
        for split in info.get("splits", {}).values():
            for name in split.get("filenames", ()):
                if folder not in (folder / name).resolve().parents:
                    raise InputError(f"{url}/_info.json lists '{name}'.", "Shards must lie below it.")
                _copy(spec, f"{url.rstrip('/')}/{name}", folder / name)
    return folder


def _copy(spec: str, url: str, file: Path) -> None:
    if file.exists():
        return
    try:
        with atomic_file(file) as temporary, open(temporary, "wb") as target, _open(spec, url) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {url}: {reason}.", "Check the address and the network.") from error


def _open(spec: str, url: str) -> IO[bytes]:
    if url.startswith(("http://", "https://")):
        response: IO[bytes] = urllib.request.urlopen(url, timeout=_TIMEOUT_S)
        return response
    opened: IO[bytes] = need("webdataset", "webdataset", spec).gopen(url)
    return opened
