"""``run.py`` on an unpacked bundle, with ONNX Runtime: verdicts, damage, resumption, predictions."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_samples import sample_bundle, sample_images, sample_models, stop_before_latency

from iekd.deploy.device import run, runtimes, sensors
from iekd.deploy.device.builds import Builds
from iekd.deploy.device.errors import DeviceError
from iekd.deploy.device.onnx_session import OnnxSession

QUICK = ["--backend", "onnxruntime", "--seconds", "0.05", "--threads", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sample_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WARMUP_SECONDS", 0.01), ("REST_SECONDS", 0.4), ("ENERGY_SECONDS", 0.4)):
        monkeypatch.setattr(run, name, value)


def unpacked(folder: Path, models: dict[str, Path], **settings: Any) -> Path:
    with zipfile.ZipFile(sample_bundle(folder, models, **settings)) as archive:
        archive.extractall(folder)
    return folder / "brightness-bundle"


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def test_a_run_within_its_limits_is_kept(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(tmp_path, models, min_accuracy=0.9, max_latency_ms=1000.0)
    assert run.main(QUICK, folder) == 0
    result = result_of(folder)
    assert result["complete"] is True
    assert result["verdict"]["kept"] is True
    assert [model["precision"] for model in result["models"]] == ["fp16", "fp32"]
    for model in result["models"]:
        assert (model["accuracy"]["correct"], model["accuracy"]["total"]) == (38, 40)
        latency = model["latency"]
        with np.load(folder / latency["trace"]) as trace:
            assert len(trace["milliseconds"]) == latency["iterations"]
            assert np.median(trace["milliseconds"]) == pytest.approx(latency["median"]["value"])
        assert latency["median"]["low"] <= latency["median"]["value"] <= latency["median"]["high"]
        assert model["stages_ms"]["host"]["median"] > 0
    fastest = min(result["models"], key=lambda model: model["latency"]["median"]["value"])
    assert result["verdict"]["winner"] == fastest["precision"]
    printed = capsys.readouterr().out
    assert "KEPT" in printed
    assert "95.00%" in printed
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"min_accuracy": 0.97}, "at least 97.00% was asked for"), ({"max_latency_ms": 1e-6}, "at most 1e-06 ms")],
)
def test_a_missed_limit_ends_with_1(
    tmp_path: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    limits: dict[str, float],
    words: str,
) -> None:
    folder = unpacked(tmp_path, models, **limits)
    assert run.main(QUICK, folder) == 1
    verdict = result_of(folder)["verdict"]
    assert (verdict["kept"], verdict["winner"]) == (False, None)
    assert words in verdict["sentence"]
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["models/fp32.onnx", "images.npz", "device/measure.py", "classes.json", "run.py"])
def test_a_damaged_file_is_named(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = unpacked(tmp_path, models)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert run.main(QUICK, folder) == 2
    assert f"error: {name} is damaged" in capsys.readouterr().err
    assert not (folder / "result.json").exists()
    (folder / name).unlink()
    assert run.main(QUICK, folder) == 2
    assert f"error: {name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 99, "files": {}}', '{"format": 1, "files": {"../x": {}}}']
)
def test_a_damaged_manifest_is_named(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    folder = unpacked(tmp_path, models)
    (folder / "manifest.json").write_text(text)
    assert run.main(QUICK, folder) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_without_tensorrt_nothing_else_is_tried(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    folder = unpacked(tmp_path, models)
    assert run.main([], folder) == 3
    printed = capsys.readouterr().err
    assert "JetPack" in printed
    assert "--backend onnxruntime" in printed
    assert not (folder / "result.json").exists()


def test_without_onnxruntime_the_pip_command_is_told(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run.main(QUICK, unpacked(tmp_path, models)) == 3
    assert "pip install onnxruntime" in capsys.readouterr().err


def test_a_stopped_run_goes_on(tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between accuracy and latency: the accuracy is not measured again, a complete run is."""
    folder = unpacked(tmp_path, models)
    counted = stop_before_latency(run, QUICK, folder, monkeypatch)
    assert result_of(folder)["complete"] is False
    assert len(counted) == 2
    assert run.main(QUICK, folder) == 0
    assert len(counted) == 2
    assert [model["accuracy"]["correct"] for model in result_of(folder)["models"]] == [38, 38]
    assert run.main(QUICK, folder) == 0
    assert len(counted) == 4


def test_what_fails_after_a_stop_is_not_told_from_before(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the latency; then one precision can no longer be opened: its old latency must not count."""

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    folder = unpacked(tmp_path, models)
    with monkeypatch.context() as patch:
        patch.setattr(run, "_measure_energy", stop)
        assert run.main(QUICK, folder) == 130
    assert all("latency" in model for model in result_of(folder)["models"])
    genuine = runtimes.OnnxSession

    def no_fp16(path: Path, **settings: Any) -> OnnxSession:
        if path.stem == "fp16":
            raise DeviceError("no FP16 here.")
        return genuine(path, **settings)

    monkeypatch.setattr(runtimes, "OnnxSession", no_fp16)
    assert run.main(QUICK, folder) == 0
    assert [model["precision"] for model in result_of(folder)["models"]] == ["fp32"]


def test_a_stopped_run_of_another_bundle_is_not_taken_up(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(tmp_path / "a", models)
    (folder / "result.json").write_text(
        json.dumps({"complete": False, "bundle": {"name": "brightness", "digest": "0" * 64}, "models": [{}]})
    )
    assert run.main(QUICK, folder) == 0
    assert result_of(folder)["models"][0]["accuracy"]["correct"] == 38
    for text in ("{half of a re", "[]", "{}"):
        (folder / "result.json").write_text(text)
        assert run.main(QUICK, folder) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from iekd.deploy.device import run
def prepare(runtime, onnx, *_, **__):
    if onnx.stem == "fp16":
        os.kill(os.getpid(), signal.SIGKILL)
    return run.Ready(runtime, onnx)
run.prepare = prepare
run.main(sys.argv[2:], Path(sys.argv[1]))
"""


def test_a_build_that_the_kernel_kills_comes_last_and_is_then_left_out_once(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(tmp_path, models)

    def killed() -> list[str]:
        found = subprocess.run([sys.executable, "-c", KILLED, str(folder), *QUICK], capture_output=True, text=True)
        assert found.returncode == -signal.SIGKILL, found.stderr
        return found.stdout.splitlines()

    assert killed()[-1] == "fp16: preparing (onnxruntime)"
    told = killed()
    assert told[-2:] == ["fp32: preparing (onnxruntime)", "fp16: preparing (onnxruntime)"]
    (line,) = [line for line in told if "it is built last this time" in line]
    assert line.startswith("fp16: building it was killed, most likely by the kernel for want of memory")
    assert "--max-batch 1" in line
    assert "swapon" in line

    asked: list[str] = []
    genuine = run.prepare
    monkeypatch.setattr(
        run, "prepare", lambda name, path, *a, **b: asked.append(path.stem) or genuine(name, path, *a, **b)
    )
    assert run.main([*QUICK, "--seconds", "0.06"], folder) == 0
    assert asked == ["fp32"]
    assert result_of(folder)["failed"]["fp16"].startswith("building it was killed")
    assert "swapon" in result_of(folder)["failed"]["fp16"]
    assert run.main(QUICK, folder) == 0, "there may be more memory now"
    assert asked == ["fp32", "fp32", "fp16"]
    assert run.main(QUICK, folder) == 0, "it was built, and is like any other again"
    assert asked[3:] == ["fp16", "fp32"]
    assert result_of(folder)["failed"] == {}
    capsys.readouterr()


def test_kills_are_of_the_same_settings_and_a_build_that_ends_leaves_none(tmp_path: Path) -> None:
    def killed(of: Any) -> dict[str, int]:
        return Builds(tmp_path, of).killed

    path = tmp_path / "building.json"
    with Builds(tmp_path, ["a"]).of("int8"):
        during = path.read_text()
    assert killed(["a"]) == {}
    with pytest.raises(KeyboardInterrupt), Builds(tmp_path, ["a"]).of("int8"):
        raise KeyboardInterrupt
    assert killed(["a"]) == {}
    path.write_text(during)
    assert killed(["a"]) == {"int8": 1}
    assert killed(["b"]) == {}, "other settings may need less"
    for text in ("", "[]", "{}", '{"of": ["a"], "kil'):
        path.write_text(text)
        assert killed(["a"]) == {}


def test_a_second_run_waits_for_the_first(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a run that lives on after its connection broke; it ends once it is waited for."""
    folder = unpacked(tmp_path, models)
    told: list[str] = []
    with open(folder / "run.lock", "a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)

        def say(line: str) -> None:
            told.append(line)
            if "another run.py" in line:
                assert not (folder / "result.json").exists()
                first.close()

        monkeypatch.setattr(run, "_say", say)
        assert run.main(QUICK, folder) == 0
    assert told[1] == f"another run.py works in {folder}: waiting for its end"
    assert result_of(folder)["complete"] is True


def test_a_precision_that_the_board_cannot_run_is_told(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(tmp_path, models)
    genuine = runtimes.OnnxSession

    def no_fp16(path: Path, **settings: Any) -> OnnxSession:
        if path.stem == "fp16":
            raise DeviceError("no FP16 here.", "Use another.")
        return genuine(path, **settings)

    monkeypatch.setattr(runtimes, "OnnxSession", no_fp16)
    assert run.main(QUICK, folder) == 0
    result = result_of(folder)
    assert result["failed"] == {"fp16": "no FP16 here.  Use another."}
    assert [model["precision"] for model in result["models"]] == ["fp32"]
    assert "note: fp16 was not run: no FP16 here." in capsys.readouterr().out

    def nothing(path: Path, **settings: Any) -> OnnxSession:
        raise DeviceError(f"no {path.stem} here.")

    monkeypatch.setattr(runtimes, "OnnxSession", nothing)
    assert run.main(QUICK, folder) == 2


def test_predictions_from_arrays_and_images(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    folder = unpacked(tmp_path, models)
    images, _ = sample_images()
    np.save(tmp_path / "dark.npy", images[0])
    Image.fromarray(images[1]).resize((40, 30)).save(tmp_path / "light.png")
    names = [str(tmp_path / name) for name in ("dark.npy", "light.png")]
    assert run.main(["predict", *QUICK[:2], *names], folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [[names[0], "dark"], [names[1], "light <&>"]]
    assert all(0.5 < float(line.split("  ")[2]) <= 1 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int4", "x.npy"], "no model 'int4'"),
        (["absent.jpg"], "no image at absent.jpg"),
    ],
)
def test_bad_predictions_are_refused(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run.main(["predict", *QUICK[:2], *arguments], unpacked(tmp_path, models)) == 2
    assert words in capsys.readouterr().err


def test_the_winner_of_the_last_run_predicts(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(tmp_path, models)
    assert run.main(QUICK, folder) == 0
    result = result_of(folder)
    result["verdict"]["winner"] = "fp32"
    (folder / "result.json").write_text(json.dumps(result))
    np.save(tmp_path / "dark.npy", sample_images()[0][0])
    capsys.readouterr()
    assert run.main(["predict", *QUICK[:2], str(tmp_path / "dark.npy")], folder) == 0
    assert "brightness fp32" in capsys.readouterr().err


def test_energy_is_measured_where_the_board_can(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that draws 5 W all the time: energy is time times 5 W, nothing above rest."""
    monkeypatch.setattr(sensors, "ina_rails", lambda: {"VDD_IN": 5000, "VDD_SOC": 1000})
    folder = unpacked(tmp_path, {"fp32": models["fp32"]})
    assert run.main(QUICK, folder) == 0
    found = result_of(folder)["models"][0]["energy"]
    assert found["watts"] == pytest.approx(5)
    assert found["joules_per_inference"] == pytest.approx(5 * found["seconds"] / found["calls"])
    assert found["joules_above_rest"] == pytest.approx(0)
    assert found["rails"] == ["VDD_IN"]
    assert "mJ/inference" in capsys.readouterr().out


def test_the_launcher_without_numpy(tmp_path: Path, models: dict[str, Path]) -> None:
    folder = unpacked(tmp_path, models)
    command = [sys.executable, "-S", "-E", str(folder / "run.py")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 3
    assert answer.stderr == "error: this needs numpy.  sudo apt-get install python3-numpy\n"


def test_a_defect_is_no_verdict(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_stages", lambda *_: 1 / 0)
    folder = unpacked(tmp_path, models)
    assert run.main(QUICK, folder) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert result_of(folder)["complete"] is False


def test_a_full_disk_is_told_and_leaves_the_old_result(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(tmp_path, models)
    (folder / "result.json").write_text("{}")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run.main(QUICK, folder) == 2
    assert "result.json: No space left on device.  Free some space" in capsys.readouterr().err
    assert (folder / "result.json").read_text() == "{}"
    assert not list(folder.glob(".*.tmp"))
