"""The Dockerfile as text: every path that it copies exists, every extra that it names exists, nobody runs as root."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {stage: re.findall(r"/src\[(\w+)\]", " ".join(lines)) for stage, lines in _stages().items()}
    assert named == {"source": [], "cpu": ["cpu"], "gpu": ["search"], "jetpack": ["cpu"]}
    assert {"cpu", "search"} <= project["optional-dependencies"].keys()
    apart = ("tensorrt", "iekd-compress")  # the base image's own, and what stands there as [search]
    wanted = [line for line in project["optional-dependencies"]["gpu"] if not line.startswith(apart)]
    assert len(wanted) == 2
    for requirement in wanted:
        assert f"'{requirement}'" in " ".join(_stages()["gpu"]), "the image lacks a part of [gpu]"


@pytest.mark.parametrize("stage", ["cpu", "gpu", "jetpack"])
def test_images_run_as_a_user_and_know_their_health(stage: str) -> None:
    lines = _stages()[stage]
    assert [line for line in lines if line.startswith("USER ")] == ["USER iekd"]
    assert any(re.match(r"RUN useradd .*\biekd$", line) for line in lines)
    assert any(line.startswith("HEALTHCHECK") and line.endswith('["iekd-compress", "doctor"]') for line in lines)
    assert 'ENTRYPOINT ["iekd-compress"]' in lines


@pytest.mark.parametrize("stage", ["cpu", "gpu", "jetpack"])
def test_the_user_is_the_one_that_the_comment_names(stage: str) -> None:
    """uid 1000, which a base may have given away already: Ubuntu 24.04 has ``ubuntu``."""
    (number,) = set(re.findall(r"writable by uid (\d+)", TEXT))
    (adding,) = [line for line in _stages()[stage] if "useradd" in line]
    assert f"--uid {number} " in adding
    assert "--non-unique" in adding


@pytest.mark.parametrize("stage", ["cpu", "gpu", "jetpack"])
def test_pip_s_configuration_is_a_secret_and_its_cache_stays_out(stage: str) -> None:
    installing = [line for line in _stages()[stage] if "pip install" in line]
    assert installing
    for line in installing:
        assert "--mount=type=secret,id=pip.conf,target=/etc/pip.conf" in line
        assert line.count("pip install") == line.count("pip install --no-cache-dir")


@pytest.mark.parametrize("stage", ["gpu", "jetpack"])
def test_tensorrt_comes_from_the_base_and_is_checked(stage: str) -> None:
    text = " ".join(_stages()[stage])
    assert "--system-site-packages" in text
    assert text.index('find_spec("tensorrt")') < text.index("pip install")


def test_bases_are_build_arguments_and_pinned_by_version() -> None:
    defaults = dict(re.findall(r"^ARG (\w*BASE)=(\S+)$", TEXT, re.MULTILINE))
    assert re.search(r":\d+\.\d+", defaults.pop("BASE"))
    assert defaults == {"GPU_BASE": "scratch", "JETPACK_BASE": "scratch"}, "only the user knows driver and board"
    froms = re.findall(r"^FROM (\S+) AS", TEXT, re.MULTILINE)
    assert froms == ["scratch", "${BASE}", "${GPU_BASE}", "${JETPACK_BASE}"]


def test_what_is_installed_is_pinned_within_what_the_project_allows() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(found.name): found for found in map(Requirement, lines)}
    assert all(re.fullmatch(r"==[^*]+", str(found.specifier)) for found in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    cpu = [line for line in extras["cpu"] if line != "iekd-compress[search]"]  # which stands for that extra's own
    assert len(cpu) < len(extras["cpu"])
    for wanted in map(Requirement, [*project["dependencies"], *cpu, *extras["search"]]):
        pin = str(pins[canonicalize_name(wanted.name)].specifier).removeprefix("==")
        assert wanted.specifier.contains(pin), wanted.name
    for stage, installs in (("cpu", 2), ("gpu", 1), ("jetpack", 0)):
        text = " ".join(_stages()[stage])
        assert text.count("-c /src/$CONSTRAINTS}") == installs
        assert ("ARG CONSTRAINTS=constraints.txt" in text) == bool(installs)


def test_every_build_argument_of_the_comments_exists() -> None:
    declared = set(re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE))
    assert set(re.findall(r"--build-arg (\w+)", TEXT)) <= declared


def test_the_image_test_builds_what_the_dockerfile_has() -> None:
    script = (ROOT / "tools" / "image-test.sh").read_text(encoding="utf-8")
    assert set(re.findall(r"--target (\w+)", script)) <= _stages().keys()
    assert set(re.findall(r"--build-arg (\w+)", script)) <= set(re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE))
    assert "image-test:\n\ttools/image-test.sh" in (ROOT / "Makefile").read_text(encoding="utf-8")
