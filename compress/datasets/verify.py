"""Reading every image once, before hours of training depend on it; what was read well is not read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iekd.compress.datasets.source import Source, UnreadableImageError
from iekd.files import atomic_file

Progress = Callable[[int, int], None]
"""(done, total)"""

_CHUNK = 256


def unreadable(
    source: Source, cache_dir: Path, *, stop_at_first: bool, on_checked: Progress | None = None
) -> dict[int, UnreadableImageError]:
    """The images that cannot be read, by number, ascending.

    Images of which ``cache_dir`` says that they were read well, and that have not changed since, are taken as good.

    Args:
        source: its :meth:`~Source.stamp` tells whether an image must be read, and whether it has changed.
        cache_dir: where the answer is kept.
        stop_at_first: return after the first bad image.
        on_checked: told how many of how many images are read.
    """
    stamps = [source.stamp(index) for index in range(len(source))]
    todo = np.array([index for index, stamp in enumerate(stamps) if stamp is not None], dtype=np.int64)
    if not len(todo):
        return {}
    keys = np.array([_key(stamp) for stamp in stamps if stamp is not None], dtype=np.uint64)
    file = cache_dir / "readable-images.npy"
    known = _load(file)
    fresh = ~np.isin(keys, known)
    bad: dict[int, UnreadableImageError] = {}
    for done, failures in _checked(source, todo[fresh]):
        bad.update(failures)
        if bad and stop_at_first:
            return bad
        if on_checked is not None:
            on_checked(done, int(fresh.sum()))
    good = fresh & ~np.isin(todo, list(bad))
    if good.any():
        _save(file, np.union1d(known, keys[good]))
    return bad


def _checked(source: Source, indices: NDArray[np.int64]) -> Iterator[tuple[int, dict[int, UnreadableImageError]]]:
    """Again and again: how many are read, and those that failed since, in order.

    Threads are enough, for Pillow decodes outside of Python's lock.
    """

    def check(chunk: NDArray[np.int64]) -> dict[int, UnreadableImageError]:
        failures = {}
        for index in chunk.tolist():
            try:
                source.check(index)
            except UnreadableImageError as error:
                failures[index] = error
        return failures

    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        try:
            done = 0
            for chunk, failures in zip(chunks, pool.map(check, chunks), strict=True):
                done += len(chunk)
                yield done, failures
        finally:
            pool.shutdown(cancel_futures=True)


def _key(stamp: str) -> int:
    return int.from_bytes(hashlib.blake2b(stamp.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _load(file: Path) -> NDArray[np.uint64]:
    try:
        keys: NDArray[np.uint64] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0, dtype=np.uint64)
    return keys


def _save(file: Path, keys: NDArray[np.uint64]) -> None:
    """Keep the answer; a cache that cannot be written costs the time of reading again, and nothing else."""
    try:
        with atomic_file(file) as temporary, open(temporary, "wb") as handle:
            np.save(handle, keys)
    except (OSError, RuntimeError):
        return
