"""Pre-trained weights from a hub: a real one on loopback, and one that is not there."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save
from small import arguments, command, refused

NAME = "resnet10t"


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch.manual_seed(5)
    return save(timm.create_model(NAME, num_classes=1000).state_dict())


class Hub:
    """Serves one timm checkpoint the way a hub does, and remembers what it was asked."""

    def __init__(self, weights: bytes) -> None:
        self.asked: list[str] = []
        hub = self
        etag = hashlib.sha256(weights).hexdigest()

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                known = self.path.endswith("/model.safetensors")
                content = weights if known else json.dumps({"error": "not found"}).encode()
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{etag}"')
                if not known:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def do_GET(self) -> None:
                self._answer(True)

            def do_HEAD(self) -> None:
                self._answer(False)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(checkpoint: bytes) -> Iterator[Hub]:
    served = Hub(checkpoint)
    yield served
    served.server.shutdown()
    served.server.server_close()


def flags(**changes: object) -> list[str]:
    return arguments(teacher_weights="auto", teacher_epochs=0, student_weights="scratch", out="run", **changes)


def connected(address: str, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1"}


def test_weights_come_from_the_hub_and_the_head_is_adapted(hub: Hub, tmp_path: Path, checkpoint: bytes) -> None:
    result = command("teacher", *flags(), cwd=tmp_path, **connected(hub.address, tmp_path))
    assert result.returncode == 0, result.stderr
    assert any(path.startswith("GET") and "model.safetensors" in path for path in hub.asked)
    assert "scratch" not in result.stdout
    (tmp_path / "given.safetensors").write_bytes(checkpoint)
    given, kept = load_file(tmp_path / "given.safetensors"), load_file(tmp_path / "run/teacher/model.safetensors")
    assert torch.equal(given["conv1.0.weight"], kept["conv1.0.weight"])
    assert kept["fc.weight"].shape[0] == 10


def _closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_an_unreachable_hub_is_one_line_and_training_from_scratch(tmp_path: Path) -> None:
    result = command("teacher", *flags(), cwd=tmp_path, **connected(_closed_port(), tmp_path))
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stdout.splitlines() if "out of reach" in line]
    assert len(told) == 1
    assert "teacher trains from scratch" in told[0]


def test_a_hub_that_was_asked_for_and_is_out_of_reach_is_a_missing_part(tmp_path: Path) -> None:
    arguments_ = flags()
    arguments_[arguments_.index("auto")] = "hub"
    refused(
        command("teacher", *arguments_, cwd=tmp_path, **connected(_closed_port(), tmp_path)), "out of reach", code=3
    )


def test_a_silent_hub_costs_ten_seconds_at_most() -> None:
    """A server that accepts and never answers; the deadline is ours, not the library's, which retries."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code = (
            "import time; from iekd.models import hub; start = time.monotonic()\n"
            "print(hub.unreachable('timm/x')); print(time.monotonic() - start)"
        )
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "PATH": "", "HF_HOME": "/nonexistent"}
        answer = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    reason, seconds = answer.stdout.splitlines()
    assert reason
    assert float(seconds) < 10


def test_a_retry_storm_cannot_happen(tmp_path: Path, hub: Hub) -> None:
    """A hub that knows nothing of the model is asked a handful of times, not dozens."""
    result = command(
        "teacher", *flags(teacher="mobilenetv3_small_050"), cwd=tmp_path, **connected(hub.address + "/none", tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert len(hub.asked) <= 6, hub.asked


def test_weights_in_the_local_cache_need_no_hub(hub: Hub, tmp_path: Path) -> None:
    environment = connected(hub.address, tmp_path)
    assert command("teacher", *flags(), cwd=tmp_path, **environment).returncode == 0
    other = {**environment, "HF_HUB_OFFLINE": "1"}
    (tmp_path / "later").mkdir()
    again = command("teacher", *flags(), cwd=tmp_path / "later", **other)
    assert again.returncode == 0, again.stderr
    assert "scratch" not in again.stdout
