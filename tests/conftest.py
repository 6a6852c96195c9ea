from __future__ import annotations

import os
from pathlib import Path

import pytest
from exporter import list_operators_once
from small import command, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
list_operators_once()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the project keeps between runs must not reach from one test, or from the developer's home, into another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run; tests must not change it."""
    from iekd import run

    folder = tmp_path_factory.mktemp("run") / "out"
    run(**settings(out=str(folder)))
    return folder


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """Twelve JPEG photographs of nothing in particular, in train/ and val/, two classes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.normal(level, 20, (40, 48, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


__all__ = ["command"]
