"""``run.py`` with TensorRT, which is not here: ``build_engine`` and ``EngineSession`` are doubles."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_samples import sample_bundle, sample_images, sample_models, stop_before_latency
from held_memory import Memories, no_collector

from iekd.deploy.device import run
from iekd.deploy.device.engine_settings import BuildSettings
from iekd.deploy.device.errors import DeviceError, OutOfMemoryError
from iekd.deploy.device.explain import explain
from iekd.deploy.device.onnx_session import OnnxSession
from iekd.deploy.device.options import build_settings, run_options

QUICK = ["--seconds", "0.05", "--no-energy"]


class Board:
    """Remembers what was asked of TensorRT, in order, and fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.settings: list[BuildSettings] = []
        self.fails: dict[str, DeviceError] = {}
        self.accelerators = 0
        self.memories = Memories()
        self.held: list[int] = []
        """How much memory others held when a call began."""
        board = self

        class EngineSession(OnnxSession):
            def __init__(self, path: Path, cuda_graph: bool = True) -> None:
                board.note(f"open {path.stem}")
                super().__init__(path, threads=1)
                self.most = 16

            def run(self, images: np.ndarray) -> np.ndarray:
                assert len(images) <= 16
                return super().run(images)

            def close(self) -> None:
                board.calls.append("close")
                super().close()

        self.session = EngineSession

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.held.append(self.memories.held)
        if call in self.fails:
            memory, error = self.memories.take(), self.fails[call]
            raise type(error)(error.message, error.hint) from MemoryError(str(memory))

    def dla_cores(self) -> int:
        self.note("probe")
        return self.accelerators

    def build_engine(self, onnx: Path, settings: Any, cache: Path, *, progress: Any = None, log: Any = None) -> Path:
        self.note(f"build {onnx.stem}")
        self.settings.append(settings)
        cache.mkdir(exist_ok=True)
        for step in range(1, 101):
            progress(step / 100, "a phase")
        plan = cache / f"{onnx.stem}.plan"
        plan.write_bytes(onnx.read_bytes())
        if onnx.stem == "fp16":  # the other engine's layers are missing, which must not keep it from running
            layers = '{"Layers": [{"Name": "conv", "LayerType": "DLA"}, "Reformat"]}'
            plan.with_suffix(".layers.json").write_text(layers)
        return plan


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    engine = types.SimpleNamespace(build_engine=board.build_engine, dla_cores=board.dla_cores)
    session = types.SimpleNamespace(EngineSession=board.session)
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setitem(sys.modules, "iekd.deploy.device.engine", engine)
    monkeypatch.setitem(sys.modules, "iekd.deploy.device.session", session)
    monkeypatch.setattr(run, "WARMUP_SECONDS", 0.01)
    return board


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Once, and so before ``board``: torch's exporter looks into every module there is, doubles too."""
    return sample_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(tmp_path: Path, models: dict[str, Path]) -> Path:
    with zipfile.ZipFile(sample_bundle(tmp_path, models)) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "brightness-bundle"


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def test_all_engines_are_built_before_the_first_is_opened(
    board: Board, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An open engine holds memory that the next build needs."""
    assert run.main(QUICK, folder) == 0
    assert board.calls == ["build fp16", "build fp32", "probe", "open fp16", "open fp32", "close", "close"]
    assert board.settings == [BuildSettings()] * 2
    result = result_of(folder)
    assert result["runtime"] == {"name": "tensorrt", "version": "10.3.0"}
    told = capsys.readouterr().out
    assert told.count("fp16: building ") == 10
    assert "fp16: 2 layers" in told
    engines = {model["precision"]: model["engine"] for model in result["models"]}
    assert engines["fp16"]["bytes"] == (folder / "engines" / "fp16.plan").stat().st_size
    assert engines["fp16"]["layers"]["devices"] == {"DLA": 1}
    assert "fp32.layers.json cannot be read" in engines["fp32"]["layers"]["error"]


def test_a_launch_bound_engine_is_told(
    board: Board, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed_run(self: Any, images: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        return self.run(images), {"compute": 1.0, "enqueue": 0.9, "host": 2.0}

    monkeypatch.setattr(board.session, "timed_run", timed_run)
    assert run.main(QUICK, folder) == 0
    for model in result_of(folder)["models"]:
        assert any(warning.startswith("launch-bound") for warning in model["latency"]["warnings"])
    assert "note: fp16: launch-bound: enqueueing took 0.9 ms of 1 ms compute" in capsys.readouterr().out


@pytest.mark.parametrize("call", ["build fp16", "open fp16"])
def test_an_engine_that_cannot_be_had_is_told_and_the_others_remain(board: Board, folder: Path, call: str) -> None:
    board.fails = {call: OutOfMemoryError("no memory.", "Use less.")}
    assert run.main(QUICK, folder) == 0
    result = result_of(folder)
    assert result["failed"] == {"fp16": "no memory.  Use less."}
    assert [model["precision"] for model in result["models"]] == ["fp32"]


def test_what_a_failed_build_held_is_free_before_the_next_begins(board: Board, folder: Path) -> None:
    board.fails = {f"build {name}": OutOfMemoryError("no memory.", "Use less.") for name in ("fp16", "fp32")}
    with no_collector():
        assert run.main(QUICK, folder) == 3
    assert board.held == [0] * len(board.calls)


def test_memory_that_suffices_for_none_ends_as_on_the_host(
    board: Board, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board.fails = {f"build {name}": OutOfMemoryError("no memory.", "Use less.") for name in ("fp16", "fp32")}
    assert run.main(QUICK, folder) == 3
    assert capsys.readouterr().err == "error: no memory.  Use less.\n"


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ([], BuildSettings()),
        (["--max-batch", "1"], BuildSettings(batch=(1, 1, 1))),
        (
            ["--max-batch", "4", "--workspace", "512", "--level", "1"],
            BuildSettings(batch=(1, 1, 4), workspace_mib=512, optimization_level=1),
        ),
        (["--dla", "0"], BuildSettings(batch=(1, 1, 1), dla_core=0)),
    ],
)
def test_engines_are_built_as_asked_for(board: Board, folder: Path, given: list[str], settings: BuildSettings) -> None:
    assert run.main([*QUICK, *given], folder) == 0
    np.save(folder / "dark.npy", sample_images()[0][0])
    assert run.main(["predict", *given, str(folder / "dark.npy")], folder) == 0
    assert board.settings == [settings] * 3
    settings.check()
    assert BuildSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in _told(folder).items()}) == settings


@pytest.mark.parametrize(("found", "words"), [(1, "1 Deep Learning Accelerator:"), (2, "Accelerators:")])
def test_an_accelerator_that_was_not_asked_for_is_told(board: Board, folder: Path, found: int, words: str) -> None:
    board.accelerators = found
    assert run.main(QUICK, folder) == 0
    (note,) = [note for note in result_of(folder)["notes"] if "Accelerator" in note]
    assert words in note
    told, _, advice = note.split(": ", 1)[1].partition(" measures there.")
    assert "fp16" in advice, "an accelerator does not compute in float32"
    command = shlex.split(told)
    assert run.main([*QUICK, *command[2:4], "--output", str(folder / command[5])], folder) == 0
    assert board.settings[-1].dla_core == 0
    assert board.calls.count("probe") == 1  # who asks for it is not told of it
    assert not [note for note in result_of(folder / "on-dla")["notes"] if "Accelerator" in note]


@pytest.mark.parametrize(
    ("trouble", "notes"),
    [(None, []), (DeviceError("it is odd."), ["No word on Deep Learning Accelerators: it is odd."])],
)
def test_a_board_without_accelerators_is_told_nothing_and_a_failed_probe_is(
    board: Board, folder: Path, trouble: DeviceError | None, notes: list[str]
) -> None:
    board.fails = {"probe": trouble} if trouble else {}
    assert run.main(QUICK, folder) == 0
    assert [note for note in result_of(folder)["notes"] if "Accelerator" in note] == notes
    assert board.calls.count("probe") == 1


def _told(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = result_of(folder)["settings"]["build"]
    return value


@pytest.mark.parametrize("given", ["--max-batch 0", "--workspace 0", "--level 6", "--dla -1", "--max-batch x"])
def test_settings_that_no_build_can_use_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(given.split(), Path())
    assert caught.value.code == 2
    assert given.split()[0] in capsys.readouterr().err


def test_the_hint_for_too_little_memory_can_be_followed() -> None:
    hint = explain(["[E] Error Code 1: Cuda Runtime (out of memory)"]).hint
    named = re.findall(r"--[a-z-]+", hint)
    assert named == ["--max-batch", "--batch", "--workspace", "--level"]
    settings = build_settings(run_options(shlex.split("--max-batch 1 --workspace 64 --level 0")))
    assert settings == BuildSettings(batch=(1, 1, 1), workspace_mib=64, optimization_level=0)


def test_what_a_stopped_run_found_with_other_engines_is_not_kept(
    board: Board, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = stop_before_latency(run, QUICK, folder, monkeypatch)
    assert run.main([*QUICK, "--dla", "0"], folder) == 0
    assert len(counted) == 4
