"""The Dockerfile as text: every path that it copies exists, every extra that it names exists, nobody runs as root."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", " ", TEXT).splitlines()


def _stages() -> dict[str, list[str]]:
    stages: dict[str, list[str]] = {}
    current: list[str] = []
    for line in LINES:
        if found := re.match(r"FROM \S+ AS (\w+)", line):
            current = stages.setdefault(found.group(1), [])
        current.append(line)
    return stages


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, f"{path} is left out by .dockerignore"


def test_all_of_the_package_is_copied() -> None:
    copied = {word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]}
    links = {link.name for link in (ROOT / "src" / "iekd").iterdir() if link.is_symlink()}
    assert links | {"src", "pyproject.toml"} <= copied


def test_named_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"/src\[(\w+)\]", TEXT)
    assert named == ["cpu"]
    assert set(named) <= extras.keys()


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_images_run_as_a_user_and_know_their_health(stage: str) -> None:
    lines = _stages()[stage]
    assert [line for line in lines if line.startswith("USER ")] == ["USER iekd"]
    assert any(line.startswith("HEALTHCHECK") and "doctor" in line for line in lines)
    assert any(line.startswith("ENTRYPOINT") and "iekd-compress" in line for line in lines)


def test_the_default_base_is_pinned_by_version() -> None:
    default = next(line for line in LINES if line.startswith("ARG BASE="))
    assert re.search(r":\d+\.\d+", default)
