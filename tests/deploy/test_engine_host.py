"""The host's side of engines: the domain's errors, the backend, precision against the GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from iekd.deploy.backends import get_backend
from iekd.deploy.backends.tensorrt import TensorRTSession
from iekd.deploy.device import errors as device_errors
from iekd.deploy.device.engine_cache import Built, Identity, Machine, Manifest, cached_engine, check_engine
from iekd.deploy.device.manifest import sha256_of
from iekd.deploy.device.parts import exit_code_of
from iekd.deploy.device.session import EngineSession
from iekd.deploy.engine import BuildSettings, BuiltEngine, build, cache_folder, check_precision, domain_errors
from iekd.errors import EnvironmentMissingError, IekdError, InputError


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (device_errors.DeviceInputError, InputError),
        (device_errors.BuildError, InputError),
        (device_errors.DeviceError, InputError),
        (device_errors.DeviceMissingError, EnvironmentMissingError),
        (device_errors.OutOfMemoryError, EnvironmentMissingError),
    ],
)
def test_the_device_s_errors_become_the_host_s(
    raised: type[device_errors.DeviceError], becomes: type[IekdError]
) -> None:
    with pytest.raises(becomes) as caught, domain_errors():
        raise raised("what is wrong", "what to do")
    assert type(caught.value) is becomes
    assert (caught.value.message, caught.value.hint) == ("what is wrong", "what to do")
    assert exit_code_of(raised("")) == caught.value.exit_code, "the board ends with the same code"


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), domain_errors():
        raise ZeroDivisionError


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("without_tensorrt")
def test_without_tensorrt_the_command_that_brings_it_is_named(tmp_path: Path) -> None:
    onnx = tmp_path / "student.onnx"
    onnx.write_bytes(b"network")
    backend = get_backend("tensorrt")
    for call in (backend.require, lambda: backend.load(onnx), lambda: build(onnx)):
        with pytest.raises(EnvironmentMissingError, match="TensorRT cannot be imported") as caught:
            call()
        assert caught.value.hint == "pip install 'iekd-compress[gpu]'"


@pytest.mark.usefixtures("without_tensorrt")
def test_what_is_wrong_with_the_input_is_told_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ONNX file at"):
        build(tmp_path / "missing.onnx")
    with pytest.raises(InputError, match="smallest, usual, largest"):
        build(tmp_path / "missing.onnx", BuildSettings(batch=(8, 1, 1)))


def test_a_copied_engine_can_be_loaded(tmp_path: Path) -> None:
    """A session refuses an engine without its manifest, so that goes along, and what the engine consists of."""
    onnx = tmp_path / "student.onnx"
    onnx.write_bytes(b"network")
    here = Machine("10.16.1", "Orin", "8.7", "driver", "Linux aarch64")
    identity = Identity(sha256_of(onnx), here)
    path = cached_engine(tmp_path / "cache", onnx, identity, lambda _timing: Built(b"plan", layers="{}"))
    engine = BuiltEngine(path, Manifest.read(path), path.with_suffix(".layers.json"))
    copy = engine.copy_to(tmp_path / "new" / "student.plan")
    assert copy.read_bytes() == b"plan"
    assert check_engine(copy, here) == engine.manifest
    assert (tmp_path / "new" / "student.layers.json").read_text() == "{}"


def test_the_cache_follows_the_user_s_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "iekd-compress" / "engines"


def test_a_precision_that_the_gpu_lacks_is_refused() -> None:
    check_precision("fp8", "8.9")
    check_precision("fp8", "11.0")
    check_precision("int8", "7.2")
    with pytest.raises(InputError, match=r"fp8 needs a GPU of SM 8\.9 or later; this one has 8\.7"):
        check_precision("fp8", "8.7")
    with pytest.raises(InputError, match="bf16"):
        check_precision("bf16", "7.5")


def test_a_session_s_refusal_is_the_host_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: EngineSession, images: np.ndarray) -> np.ndarray:
        raise device_errors.DeviceInputError("the engine takes float32 images.", "Convert them.")

    monkeypatch.setattr(EngineSession, "run", refuse)
    with pytest.raises(InputError, match="float32"):
        TensorRTSession(EngineSession.__new__(EngineSession)).run(np.zeros((1, 3, 4, 4), np.float64))
