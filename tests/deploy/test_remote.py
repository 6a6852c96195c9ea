"""From here to a board and back, over a real sshd on loopback, into a Python that has no torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import loopback
import numpy as np
import pytest
from bundle_samples import sample_bundle, sample_images, sample_models
from small import command

from iekd.deploy import remote, remote_agent, remote_run
from iekd.deploy.bundle import write_bundle
from iekd.errors import EnvironmentMissingError, IekdError, InputError

pytestmark = pytest.mark.skipif(bool(loopback.missing()), reason=loopback.missing())

QUICK = ("--backend", "onnxruntime", "--seconds", "0.05", "--threads", "1", "--no-energy")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    loopback.make_keys(folder)
    return folder


@pytest.fixture(scope="session")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(loopback.make_python(tmp_path_factory.mktemp("python")))


@pytest.fixture(scope="module")
def board(keys: Path) -> Iterator[loopback.Loopback]:
    with loopback.board(keys) as found:
        yield found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"fp32": sample_models(tmp_path_factory.mktemp("models"))["fp32"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    return sample_bundle(tmp_path_factory.mktemp("bundle"), models, min_accuracy=0.9)


@pytest.fixture
def reach(board: loopback.Loopback, tmp_path: Path, plain_python: str) -> dict[str, Any]:
    """The arguments of ``deploy`` for this board, with a folder there for each test."""
    return {
        "host": board.host,
        "port": board.port,
        "identity": board.identity,
        "options": board.options,
        "python": plain_python,
        "arguments": QUICK,
        "folder": str(tmp_path / "there"),
        "output": tmp_path / "here",
    }


def deployed(bundle: Path, reach: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    path = remote.deploy(bundle=bundle, say=lines.append, **{**reach, **changes})
    return json.loads(path.read_text()), lines


def failed(bundle: Path, reach: dict[str, Any], kind: type[IekdError], **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        deployed(bundle, reach, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_board_s_python_has_no_torch(plain_python: str) -> None:
    def runs(code: str) -> bool:
        return subprocess.run([plain_python, "-E", "-c", code], capture_output=True).returncode == 0

    assert runs("import numpy, onnxruntime")
    for name in ("torch", "timm", "onnx", "PIL", "scipy", "pydantic", "iekd"):
        assert not runs(f"import {name}"), name


def test_copy_run_and_fetch(bundle: Path, reach: dict[str, Any]) -> None:
    result, lines = deployed(bundle, reach)
    assert result["complete"] is True
    assert result["verdict"]["kept"] is True
    assert result["runtime"]["name"] == "onnxruntime"
    assert (
        lines[0]
        == f"copying {bundle.stat().st_size} of {bundle.stat().st_size} bytes to {reach['host']}:{reach['folder']}"
    )
    assert "verifying the bundle" in lines
    assert any(line.startswith("KEPT") for line in lines)
    for model in result["models"]:
        with np.load(reach["output"] / model["latency"]["trace"]) as trace:
            assert len(trace["milliseconds"]) == model["latency"]["iterations"]
    assert {path.name for path in reach["output"].iterdir()} == {"result.json", "traces"}

    _, lines = deployed(bundle, reach)
    assert lines[0].endswith("is on " + reach["host"] + " already")


def test_a_missed_limit_is_a_result(tmp_path: Path, models: dict[str, Path], reach: dict[str, Any]) -> None:
    bundle = sample_bundle(tmp_path, models, min_accuracy=0.99)
    result, lines = deployed(bundle, reach)
    assert result["verdict"]["kept"] is False
    assert any(line.startswith("MISSED") for line in lines)


@pytest.mark.parametrize(("least", "code", "word"), [(0.9, 0, "KEPT"), (0.99, 1, "MISSED")])
def test_the_command(
    tmp_path: Path, models: dict[str, Path], reach: dict[str, Any], least: float, code: int, word: str
) -> None:
    bundle = sample_bundle(tmp_path, models, min_accuracy=least)
    connection = ("--port", str(reach["port"]), "--identity", str(reach["identity"]), "--python", reach["python"])
    options = (argument for option in reach["options"] for argument in ("--option", option))
    there, here = reach["folder"], reach["output"]
    given = (*QUICK[:2], "--seconds", "0.1", "--threads", "1", "--no-energy", "--folder", there, "-o", str(here))
    found = command("deploy", reach["host"], str(bundle), *connection, *options, *given, cwd=tmp_path)
    assert found.returncode == code, found.stdout + found.stderr
    assert f"bytes to {reach['host']}:{there}" in found.stdout
    assert f"\n{word}  " in found.stdout
    assert f"iekd-compress report RUN --add {here / 'result.json'}" in found.stdout
    result = json.loads((here / "result.json").read_text())
    assert result["settings"] == {"seconds": 0.1, "images": 40, "threads": 1, "build": None}
    assert not any("energy" in note for note in result["notes"]), "--no-energy did not reach the board"
    assert any(Path(there).glob("*.bundle.zip"))


def test_hints_name_options_of_the_command(bundle: Path, reach: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "--folder" in failed(bundle, reach, InputError, folder="a b")
    assert "--folder" in failed(bundle, reach, InputError, arguments=("--output=x",))
    assert "--folder" in failed(bundle, reach, EnvironmentMissingError, folder=str(tmp_path / "file" / "there"))
    words = command("deploy", "--help").stdout
    for option in ("--folder", "--python", "--identity", "--threads", "--no-energy"):
        assert option in words


def test_an_interrupted_copy_goes_on(
    tmp_path: Path, models: dict[str, Path], reach: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh is killed within the copy, for real; the next call sends only what is not there."""
    _, labels = sample_images(2000)
    noise = np.random.default_rng(0).integers(0, 256, (2000, 16, 16, 3)).astype(np.uint8)
    bundle = write_bundle(tmp_path / "b.zip", models, noise, labels)
    size, there = bundle.stat().st_size, Path(reach["folder"])
    assert size > 1_000_000

    def part_of_it(source: Any, target: Any, length: int) -> None:
        target.write(source.read(400_000))
        target.flush()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not any(part.stat().st_size for part in there.glob("*.bundle.part")):
            time.sleep(0.02)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote.shutil, "copyfileobj", part_of_it)
        with pytest.raises(KeyboardInterrupt):
            deployed(bundle, reach)
    result, lines = deployed(bundle, reach)
    assert result["complete"] is True
    sent = int(lines[0].split()[1])
    assert size - 400_000 <= sent < size
    assert [path.name for path in there.glob("*.bundle.*")] == [f"{remote.sha256_of(bundle)[:16]}.bundle.zip"]


@pytest.mark.parametrize("kept", [1, 20_000, 10**9])
def test_a_first_part_is_gone_on_with(bundle: Path, reach: dict[str, Any], kept: int) -> None:
    content, there = bundle.read_bytes(), Path(reach["folder"])
    there.mkdir()
    part = there / f"{hashlib.sha256(content).hexdigest()[:16]}.bundle.part"
    part.write_bytes(content[:kept])
    _, lines = deployed(bundle, reach)
    assert lines[0].startswith(f"copying {max(0, len(content) - kept)} of {len(content)} bytes")


@pytest.mark.parametrize("length", [1000])
def test_a_first_part_that_is_damaged_is_not(bundle: Path, reach: dict[str, Any], length: int) -> None:
    content, there = bundle.read_bytes(), Path(reach["folder"])
    there.mkdir()
    (there / f"{hashlib.sha256(content).hexdigest()[:16]}.bundle.part").write_bytes(b"x" * length)
    result, lines = deployed(bundle, reach)
    assert lines[0].startswith(f"copying {len(content)} of {len(content)} bytes")
    assert result["complete"] is True


def test_a_damaged_file_on_the_board_is_put_right(bundle: Path, reach: dict[str, Any]) -> None:
    deployed(bundle, reach)
    there = Path(reach["folder"])
    (there / "brightness-bundle" / "models" / "fp32.onnx").write_bytes(b"damaged")
    (there / "0123456789abcdef.bundle.zip").write_bytes(b"an older bundle")
    result, lines = deployed(bundle, reach)
    assert "already" in lines[0]
    assert result["complete"] is True
    assert not (there / "0123456789abcdef.bundle.zip").exists()


def test_nobody_answers(bundle: Path, reach: dict[str, Any]) -> None:
    assert "cannot reach" in failed(bundle, reach, EnvironmentMissingError, port=1)
    text = failed(bundle, reach, EnvironmentMissingError, host="nobody@board.invalid")
    assert "cannot reach nobody@board.invalid" in text


def test_an_unknown_host_key_is_not_accepted(bundle: Path, reach: dict[str, Any], tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.touch()
    options = (f"UserKnownHostsFile={known}", "GlobalKnownHostsFile=/dev/null")
    text = failed(bundle, reach, EnvironmentMissingError, options=options)
    assert "host key" in text
    assert "not known here" in text
    assert known.read_text() == ""


def test_a_changed_host_key_is_not_accepted(
    bundle: Path, reach: dict[str, Any], tmp_path: Path, keys: Path, board: loopback.Loopback
) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{board.port} {(keys / 'stranger_key.pub').read_text()}")
    options = (f"UserKnownHostsFile={known}", "GlobalKnownHostsFile=/dev/null")
    text = failed(bundle, reach, EnvironmentMissingError, options=options)
    assert "is not the one that this machine knows" in text
    assert "ssh-keygen -R" in text


def test_a_stranger_is_not_let_in(bundle: Path, reach: dict[str, Any], keys: Path) -> None:
    text = failed(bundle, reach, EnvironmentMissingError, identity=keys / "stranger_key")
    assert "does not let us in" in text
    assert "ssh-copy-id" in text


def test_a_board_without_python(bundle: Path, reach: dict[str, Any]) -> None:
    assert "has no python9" in failed(bundle, reach, EnvironmentMissingError, python="python9")
    assert "did not answer" in failed(bundle, reach, EnvironmentMissingError, python="/bin/false")


def test_a_python_that_is_too_old(bundle: Path, reach: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MIN_PYTHON", (9, 0))
    assert "3.10 or later is needed" in failed(bundle, reach, EnvironmentMissingError)


def test_a_full_disk(keys: Path, bundle: Path, reach: dict[str, Any], board: loopback.Loopback) -> None:
    """No file may grow beyond 20 kB there: the copy fails within, and goes on once there is room."""
    known = (keys / "known_hosts").read_text()
    with loopback.board(keys, most_bytes=20_000) as full:
        text = failed(bundle, reach, EnvironmentMissingError, port=full.port, options=full.options)
    (keys / "known_hosts").write_text(known)
    assert "has no space left" in text
    assert "the copy goes on" in text
    _, lines = deployed(bundle, reach)
    size = bundle.stat().st_size
    assert lines[0].startswith(f"copying {size - 20_000} of {size} bytes")


def test_space_is_looked_for_before_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=remote_agent.MARGIN)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(remote_agent.Failure, match="64 MiB free"):
        remote_agent.probe(tmp_path, "0" * 64, "1000", "1000")


def test_two_copies_at_once(bundle: Path, reach: dict[str, Any]) -> None:
    there = Path(reach["folder"])
    there.mkdir()
    with open(there / f"{remote.sha256_of(bundle)[:16]}.bundle.part", "wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "is being copied to by another" in failed(bundle, reach, EnvironmentMissingError)


def test_a_folder_that_cannot_be_written(bundle: Path, reach: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = failed(bundle, reach, EnvironmentMissingError, folder=str(tmp_path / "file" / "there"))
    assert "cannot be written to" in text


def test_the_board_s_own_errors_come_through(bundle: Path, reach: dict[str, Any]) -> None:
    text = failed(bundle, reach, EnvironmentMissingError, arguments=())
    assert "ended with exit code 3: TensorRT" in text
    assert "--backend onnxruntime" in text
    text = failed(bundle, reach, InputError, arguments=("--seconds", "x; touch /tmp/injected"))
    assert "ended with exit code 2" in text
    assert "invalid" in text


def test_a_defect_on_the_board_is_one_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "_over_ssh", lambda *_: (70, "KeyError: 'sm'", ""))
    board: Any = SimpleNamespace(host="orin", python="python3")
    with pytest.raises(IekdError, match=r"orin ended with exit code 70: KeyError: 'sm'$") as caught:
        remote_run.run_bundle(board, "there", (), print)
    assert caught.value.exit_code == 70


def test_a_connection_that_breaks(bundle: Path, reach: dict[str, Any], tmp_path: Path) -> None:
    """The board's end of the connection is killed while run.py runs."""
    python = tmp_path / "python"
    its_sshd = "$(cut -d' ' -f4 /proc/$PPID/stat)"  # the parent of the shell that waits for run.py
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = run.py ]; then kill -9 {its_sshd}; sleep 5; fi\nexec {reach["python"]} "$@"\n'
    )
    python.chmod(0o755)
    text = failed(bundle, reach, EnvironmentMissingError, python=str(python))
    assert "broke" in text
    assert "the run goes on" in text


def test_a_run_that_is_killed_is_no_broken_connection(bundle: Path, reach: dict[str, Any], tmp_path: Path) -> None:
    """As the kernel does where the memory does not suffice."""
    python = tmp_path / "python"
    dying = 'if [ "$1" = run.py ]; then echo "fp16: building 40 %"; kill -9 $$; fi'
    python.write_text(f'#!/bin/sh\n{dying}\nexec {reach["python"]} "$@"\n')
    python.chmod(0o755)
    text = failed(bundle, reach, EnvironmentMissingError, python=str(python))
    assert "was killed, most likely by the kernel for want of memory (its last line: fp16: building 40 %)" in text
    for hint in ("--run-option=--max-batch=1", "--run-option=--workspace=", "swapon", "comes last"):
        assert hint in text
    assert "broke" not in text


def test_the_output_stays_where_it_is_fetched_from(bundle: Path, reach: dict[str, Any]) -> None:
    assert "--output cannot be given" in failed(bundle, reach, InputError, arguments=("--output=x",))


def test_a_crash_on_the_board_is_no_verdict(
    tmp_path: Path, bundle: Path, reach: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 says that a limit was missed; a crash must not be taken for it, nor an old result for a new one."""
    deployed(bundle, reach)
    monkeypatch.setattr(remote, "run_bundle", lambda *_: None)
    path = Path(reach["folder"]) / "brightness-bundle" / "result.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    assert "left no complete result" in failed(bundle, reach, EnvironmentMissingError)
    path.unlink()
    assert "cannot fetch the result" in failed(bundle, reach, EnvironmentMissingError)


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", "a;b", "", "$(x)@y"])
def test_hosts_that_are_none(bundle: Path, reach: dict[str, Any], host: str) -> None:
    assert "is not a host" in failed(bundle, reach, InputError, host=host)


def test_bundles_that_are_none(tmp_path: Path, reach: dict[str, Any]) -> None:
    assert "no bundle at" in failed(tmp_path / "absent.zip", reach, InputError)
    (tmp_path / "text.zip").write_text("no zip")
    assert "is not a bundle" in failed(tmp_path / "text.zip", reach, InputError)


def test_a_zip_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / f"{'0' * 16}.bundle.zip", "w") as archive:
        archive.writestr("../outside", "x")
    with pytest.raises(remote_agent.Failure, match="lies outside"):
        remote_agent.unpack(tmp_path, "0" * 64)
    assert not (tmp_path.parent / "outside").exists()
