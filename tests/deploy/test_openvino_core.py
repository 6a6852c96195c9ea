"""After OpenVINO has run, signals still find the stack that they are handled on.  In processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from quantization_samples import write

pytest.importorskip("openvino", reason="needs the extra `openvino`")

SESSIONS = """
from iekd.deploy.backends import get_backend
images = np.zeros((1, 3, 16, 16), np.float32)
first, second = (get_backend("openvino").load(file, threads=1) for _ in range(2))
for session in (first, second):
    session.run(images)
for session in (first, second):
    session.close()
del session, first, second
"""
"""Closed in the order in which they were opened, as the teacher's and the student's are."""

PLUGINS = """
import openvino
from iekd.deploy.openvino_core import signal_stack_kept
with signal_stack_kept():
    first, second = (openvino.Core() for _ in range(2))
    for plugin in (first, second):
        plugin.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    del plugin, first
    gc.collect()
    del second
    gc.collect()
"""
"""What a library may do that has plugins of its own; without the care it ends the process (OpenVINO 2026.4)."""

PROGRAM = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
handled = []
signal.signal(signal.SIGCHLD, lambda *_: handled.append(1))
file = Path(sys.argv[1])
{body}
gc.collect()
os.kill(os.getpid(), signal.SIGCHLD)
print("handled" if handled else "lost")
"""


def _run(body: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = write(tmp_path / "float.onnx")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), str(file)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are Linux's here")
@pytest.mark.parametrize("body", [SESSIONS, PLUGINS], ids=["sessions", "plugins"])
def test_a_signal_after_openvino_is_handled(body: str, tmp_path: Path) -> None:
    done = _run(body, tmp_path)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
