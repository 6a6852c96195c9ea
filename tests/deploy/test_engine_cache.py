"""The engine cache, with builders that build nothing: keys, manifests, damage, several processes, kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iekd.deploy.device.engine import build_into
from iekd.deploy.device.engine_cache import (
    Built,
    Identity,
    Machine,
    Manifest,
    cached_engine,
    check_engine,
    onnx_sha256,
)
from iekd.deploy.device.engine_settings import BuildSettings
from iekd.deploy.device.engine_watch import Watch
from iekd.deploy.device.errors import BuildError, DeviceError, DeviceInputError

DEVICE = Path(__file__).parents[2] / "deploy" / "device"
ORIN = Machine(tensorrt="10.3.0", gpu="Orin", sm="8.7", driver="L4T 36.4 CUDA 12.6", platform="Linux aarch64")


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"network")
    return path


class Builder:
    """Counts its builds, and numbers their plans."""

    def __init__(self) -> None:
        self.timings: list[bytes] = []

    def __call__(self, timing: bytes) -> Built:
        self.timings.append(timing)
        return Built(b"plan %d" % len(self.timings), '{"Layers": []}', timing + b"t")

    @property
    def builds(self) -> int:
        return len(self.timings)


def identity(onnx: Path, machine: Machine = ORIN, **options: Any) -> Identity:
    return Identity(onnx_sha256(onnx), machine, replace(BuildSettings(), **options).as_dict())


def test_the_second_call_is_served_by_the_cache(tmp_path: Path, onnx: Path) -> None:
    builder, cache, log = Builder(), tmp_path / "cache", []
    first = cached_engine(cache, onnx, identity(onnx), builder, log=log.append)
    second = cached_engine(cache, onnx, identity(onnx), builder, log=log.append)
    assert first == second
    assert builder.builds == 1
    assert first.read_bytes() == b"plan 1"
    assert json.loads(first.with_suffix(".layers.json").read_text()) == {"Layers": []}
    assert log == [f"[I] building {first.name}: there is none yet.", f"[I] {first.name} is in the cache."]
    manifest = Manifest.read(first)
    assert manifest.identity == identity(onnx)
    assert manifest.onnx == str(onnx)


def test_a_hit_names_the_file_that_was_given_last(tmp_path: Path, onnx: Path) -> None:
    """A stripped plan is refitted from it; that of the build may have been moved or deleted since."""
    builder, cache, log = Builder(), tmp_path / "cache", []
    stripped = identity(onnx, strip_plan=True)
    first = cached_engine(cache, onnx, stripped, builder)
    before = Manifest.read(first)
    moved = tmp_path / "elsewhere" / onnx.name
    moved.parent.mkdir()
    onnx.rename(moved)
    assert cached_engine(cache, moved, stripped, builder, log=log.append) == first
    assert builder.builds == 1
    assert log == [f"[I] {first.name} is in the cache."]
    assert Manifest.read(first) == replace(before, onnx=str(moved))
    check_engine(first, ORIN)


def test_a_hit_in_a_cache_that_can_only_be_read_is_one_all_the_same(
    tmp_path: Path, onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, cache, log = Builder(), tmp_path / "cache", []
    first = cached_engine(cache, onnx, identity(onnx), builder)
    copy = tmp_path / "elsewhere" / onnx.name
    copy.parent.mkdir()
    copy.write_bytes(onnx.read_bytes())
    monkeypatch.setattr("os.fsync", full)
    assert cached_engine(cache, copy, identity(copy), builder, log=log.append) == first
    assert log[-1].startswith(f"[W] {first.name} still names {onnx}: the engine cache ")
    assert Manifest.read(first).onnx == str(onnx)


def test_all_that_an_engine_depends_on_is_in_its_key(onnx: Path) -> None:
    base = identity(onnx)
    others = [identity(onnx, **{name: value}) for name, value in OTHER_OPTIONS.items()]
    others += [
        identity(onnx, replace(ORIN, **{name: "other"})) for name in ("tensorrt", "gpu", "sm", "driver", "platform")
    ]
    onnx.with_name("student.onnx.data").write_bytes(b"weights beside the file")
    others.append(identity(onnx))
    onnx.write_bytes(b"another network")
    others.append(identity(onnx))
    assert len({base.key, *(other.key for other in others)}) == len(others) + 1


OTHER_OPTIONS: dict[str, Any] = {
    "batch": (1, 2, 8),
    "height": (32, 64, 96),
    "width": (32, 64, 96),
    "workspace_mib": 64,
    "tactic_mib": 64,
    "optimization_level": 5,
    "tf32": False,
    "sparse": True,
    "version_compatible": True,
    "hardware_compatible": True,
    "strip_plan": True,
    "dla_core": 0,
}


def test_the_table_of_options_is_whole() -> None:
    assert OTHER_OPTIONS.keys() == BuildSettings().as_dict().keys()


def damage_engine(engine: Path) -> None:
    engine.write_bytes(b"plan x")


def truncate_engine(engine: Path) -> None:
    engine.write_bytes(b"pl")


def remove_engine(engine: Path) -> None:
    engine.unlink()


def remove_manifest(engine: Path) -> None:
    engine.with_suffix(".json").unlink()


def truncate_manifest(engine: Path) -> None:
    manifest = engine.with_suffix(".json")
    manifest.write_text(manifest.read_text()[:50])


def age_manifest(engine: Path) -> None:
    """As format 1 was."""
    manifest = engine.with_suffix(".json")
    entries = json.loads(manifest.read_text())
    del entries["identity"]["machine"]["platform"]
    manifest.write_text(json.dumps(entries | {"format": 1}))


def empty_manifest(engine: Path) -> None:
    engine.with_suffix(".json").write_text("[]")


def foreign_manifest(engine: Path) -> None:
    manifest = engine.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"Orin"', '"RTX 4060"'))


def other_options(engine: Path) -> None:
    manifest = engine.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"tf32": true', '"tf32": false'))


@pytest.mark.parametrize(
    "spoil",
    [
        damage_engine,
        truncate_engine,
        remove_engine,
        remove_manifest,
        truncate_manifest,
        age_manifest,
        empty_manifest,
        foreign_manifest,
        other_options,
    ],
)
def test_what_does_not_fit_is_rebuilt(tmp_path: Path, onnx: Path, spoil: Any) -> None:
    builder, cache = Builder(), tmp_path / "cache"
    engine = cached_engine(cache, onnx, identity(onnx), builder)
    spoil(engine)
    assert cached_engine(cache, onnx, identity(onnx), builder) == engine
    assert builder.builds == 2
    assert engine.read_bytes() == b"plan 2"
    check_engine(engine, ORIN)


def test_an_older_manifest_is_told_as_such(tmp_path: Path, onnx: Path) -> None:
    engine = cached_engine(tmp_path / "cache", onnx, identity(onnx), Builder())
    age_manifest(engine)
    with pytest.raises(DeviceInputError, match="cannot be read: it has format 1, and this program knows 2") as caught:
        check_engine(engine, ORIN)
    assert caught.value.hint == "Build the engine again from the ONNX file."


@pytest.mark.parametrize(
    ("options", "here", "refusal"),
    [
        ({}, {}, None),
        ({}, {"sm": "8.6"}, "SM 8.7"),
        ({}, {"gpu": "RTX 4060"}, "this is RTX 4060"),
        ({}, {"driver": "newer"}, None),
        ({}, {"tensorrt": "10.13.0"}, "TensorRT 10.3.0; this is 10.13.0"),
        ({"version_compatible": True}, {"tensorrt": "10.13.0"}, None),
        ({"version_compatible": True}, {"tensorrt": "11.0.0"}, "TensorRT 10.3.0; this is 11.0.0"),
        ({"version_compatible": True}, {"tensorrt": "10.2.0"}, "TensorRT 10.3.0; this is 10.2.0"),
        ({}, {"platform": "Linux x86_64"}, "built on Linux aarch64; this is Linux x86_64"),
        ({"hardware_compatible": True}, {"sm": "9.0", "gpu": "GH200"}, None),
        ({"hardware_compatible": True}, {"sm": "8.6", "gpu": "RTX 3080", "platform": "Linux x86_64"}, "Linux x86_64"),
        ({"hardware_compatible": True}, {"sm": "7.5", "gpu": "RTX 2080"}, "SM 8.0 or later"),
        ({"hardware_compatible": True}, {"sm": "11.0", "gpu": "Thor"}, None),
    ],
)
def test_a_foreign_engine_is_known_by_its_manifest(
    tmp_path: Path, onnx: Path, options: dict[str, Any], here: dict[str, str], refusal: str | None
) -> None:
    engine = cached_engine(tmp_path / "cache", onnx, identity(onnx, **options), Builder())
    if refusal is None:
        check_engine(engine, replace(ORIN, **here))
    else:
        with pytest.raises(DeviceInputError, match=refusal):
            check_engine(engine, replace(ORIN, **here))


def test_the_timing_cache_is_handed_on_between_builds_on_one_machine(tmp_path: Path, onnx: Path) -> None:
    builder, cache = Builder(), tmp_path / "cache"
    cached_engine(cache, onnx, identity(onnx), builder)
    cached_engine(cache, onnx, identity(onnx, sparse=True), builder)
    cached_engine(cache, onnx, identity(onnx, replace(ORIN, driver="newer")), builder)
    assert builder.timings == [b"", b"t", b""]


def test_a_failed_build_leaves_no_engine(tmp_path: Path, onnx: Path) -> None:
    cache = tmp_path / "cache"

    def failing(path: Path, settings: BuildSettings, timing: bytes, watch: Watch) -> Built:
        watch.lines.append("[E] the reason")
        raise BuildError("TensorRT did not build the engine: the reason", "Try another.")

    with pytest.raises(BuildError, match="the reason") as caught:
        build_into(onnx, BuildSettings(), cache, identity(onnx), failing)
    log = cache / f"student-{identity(onnx).key}.log"
    assert sorted(path.name for path in cache.iterdir()) == ["build.lock", log.name]
    assert log.read_text() == "[E] the reason\n"
    assert caught.value.hint == f"Try another.  Log: {log}"


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told(tmp_path: Path, onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DeviceError, match=r"engine cache .*cache cannot be written: No space left") as caught:
            cached_engine(cache, onnx, identity(onnx), Builder())
    assert "--output" in caught.value.hint
    assert "XDG_CACHE_HOME" in caught.value.hint
    assert [path.name for path in cache.iterdir()] == ["build.lock"]
    check_engine(cached_engine(cache, onnx, identity(onnx), Builder()), ORIN)


def no_folder(cache: Path) -> None:
    cache.write_bytes(b"a file in the way")


def no_lock(cache: Path) -> None:
    (cache / "build.lock").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [no_folder, no_lock])
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, onnx: Path, spoil: Any) -> None:
    """Without permissions, which would not stop a test that runs as root."""
    builder, cache = Builder(), tmp_path / "cache"
    spoil(cache)
    with pytest.raises(DeviceError, match="cannot be written"):
        cached_engine(cache, onnx, identity(onnx), builder)
    assert builder.builds == 0


def test_an_engine_that_cannot_be_read_is_rebuilt(tmp_path: Path, onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, cache, log = Builder(), tmp_path / "cache", []
    cached_engine(cache, onnx, identity(onnx), builder)

    def unreadable(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("iekd.deploy.device.engine_cache.sha256_of", unreadable)
    engine = cached_engine(cache, onnx, identity(onnx), builder, log=log.append)
    assert log == [f"[I] building {engine.name}: it cannot be read (Input/output error)."]
    assert engine.read_bytes() == b"plan 2"


def test_a_full_disk_does_not_hide_why_a_build_failed(
    tmp_path: Path, onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, settings: BuildSettings, timing: bytes, watch: Watch) -> Built:
        raise BuildError("TensorRT did not build the engine: the reason", "Try another.")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BuildError, match="the reason") as caught:
        build_into(onnx, BuildSettings(), tmp_path / "cache", identity(onnx), failing)
    assert caught.value.hint == "Try another."


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"batch": (4, 2, 8)}, "batch"),
        ({"batch": (0, 1, 1)}, "batch"),
        ({"optimization_level": 6}, "optimisation level 6"),
        ({"workspace_mib": 0}, "workspace_mib is 0"),
        ({"dla_core": 0}, "one size only"),
    ],
)
def test_settings_that_no_build_can_use_are_refused(settings: dict[str, Any], refusal: str) -> None:
    with pytest.raises(DeviceInputError, match=refusal):
        BuildSettings(**settings).check()
    BuildSettings(batch=(4, 4, 4), dla_core=0).check()


# Several processes

PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from device.engine_cache import Built, Identity, Machine, cached_engine, onnx_sha256

folder, seconds = Path(sys.argv[2]), float(sys.argv[3])
onnx = folder / "student.onnx"

def build(timing):
    with open(folder / "builds", "a") as handle:
        handle.write("one\\n")
    (folder / "cache" / ".student.half.tmp").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(seconds)
    return Built(b"plan", "", b"timing")

machine = Machine(tensorrt="10.3.0", gpu="Orin", sm="8.7", driver="", platform="Linux aarch64")
print("ready", flush=True)
sys.stdin.readline()
engine = cached_engine(folder / "cache", onnx, Identity(onnx_sha256(onnx), machine), build, log=print)
print(engine.read_bytes().decode(), flush=True)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that stands ready to ask the cache."""
    command = [sys.executable, "-c", PROGRAM, str(DEVICE.parent), str(folder), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_at_once_build_once(tmp_path: Path, onnx: Path) -> None:
    processes = [start(tmp_path, 0.5) for _ in range(2)]
    for process in processes:
        go(process)
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(answer.endswith("plan\n") for answer in answers)
    assert (tmp_path / "builds").read_text() == "one\n"
    assert sum("waiting for another process" in answer for answer in answers) == 1
    assert sum("was built by another process" in answer for answer in answers) == 1


def test_a_killed_build_is_taken_over(tmp_path: Path, onnx: Path) -> None:
    """The lock dies with the process; what it left half-written is removed and never read."""
    first, second = start(tmp_path, 60), start(tmp_path, 0)
    assert first.stdout is not None
    go(first)
    while first.stdout.readline() != "building\n":
        pass
    go(second)
    time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert second.communicate(timeout=60)[0].endswith("plan\n")
    assert (tmp_path / "builds").read_text() == "one\none\n"
    assert check_engine(
        next((tmp_path / "cache").glob("*.engine")), Machine("10.3.0", "Orin", "8.7", "", "Linux aarch64")
    )
