"""Progress of a build, and stopping it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from held_memory import Memories, no_collector

from iekd.deploy.device.engine_watch import Watch, run_watched

DEVICE = Path(__file__).parents[2] / "deploy" / "device"


def test_the_share_counts_nested_phases() -> None:
    watch = Watch()
    watch.begin("whole", None, 4)
    assert watch.progress() == (0.0, "whole")
    watch.begin("part", "whole", 2)
    watch.step("part", 0)
    assert watch.progress() == (0.125, "part")
    watch.step("part", 1)
    watch.end("part")
    watch.step("whole", 0)
    assert watch.progress()[0] == 0.25
    for number in range(1, 4):
        watch.step("whole", number)
    watch.end("whole")
    assert watch.progress()[0] == 1.0
    watch.begin("another", None, 2)
    assert watch.progress() == (1.0, "another"), "it never falls"


def test_an_unknown_phase_does_no_harm() -> None:
    watch = Watch()
    assert watch.step("never begun", 3)
    watch.end("never begun")
    assert watch.progress() == (0.0, "")


def test_callbacks_run_in_the_caller_s_thread() -> None:
    here, seen = threading.get_ident(), []

    def work(watch: Watch) -> int:
        assert threading.get_ident() != here
        watch.begin("phase", None, 2)
        watch.lines.append("[I] line")
        return 7

    result = run_watched(work, Watch(), log=lambda line: seen.append((line, threading.get_ident())))
    assert (result, seen) == (7, [("[I] line", here)])


def busy(watch: Watch) -> str:
    watch.begin("phase", None, 1000)
    for number in range(1000):
        time.sleep(0.005)
        if not watch.step("phase", number):
            return "stopped"
    return "ran to the end"


def test_what_the_work_raises_is_raised() -> None:
    def work(watch: Watch) -> None:
        raise ValueError("the work's own")

    with pytest.raises(ValueError, match="the work's own"):
        run_watched(work, Watch())


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_a_failed_build_held_is_free_before_the_next_begins(interrupted: bool) -> None:
    memories = Memories()

    def work(watch: Watch) -> None:
        memory = memories.take()
        watch.lines.append("[I] begun")
        if interrupted:
            watch.cancelled.wait()
        raise ValueError(f"the work's own, with {memory}")

    def stop(line: str) -> None:
        if interrupted:
            raise BrokenPipeError

    with no_collector():
        with pytest.raises(BrokenPipeError if interrupted else ValueError):
            run_watched(work, Watch(), log=stop)
        assert memories.held == 0


def test_a_callback_that_raises_stops_the_work() -> None:
    ends: list[str] = []

    def work(watch: Watch) -> None:
        ends.append(busy(watch))

    def broken_pipe(share: float, phase: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_watched(work, Watch(), progress=broken_pipe)
    assert ends == ["stopped"]


def test_ctrl_c_stops_the_work_and_waits_for_it() -> None:
    """With a real signal, in a process of its own, while the work sits in a thread."""
    code = (
        "import signal, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts without it
        "from device.engine_watch import Watch, run_watched\n"
        "def work(watch):\n"
        "    watch.begin('phase', None, 10**6)\n"
        "    print('begun', flush=True)\n"
        "    while watch.step('phase', 0): time.sleep(0.01)\n"
        "    time.sleep(0.2); print('cleaned up', flush=True)\n"
        "try: run_watched(work, Watch())\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(DEVICE.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "cleaned up\ninterrupted\n"
    assert process.returncode == 0
