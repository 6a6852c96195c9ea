"""What the command line says where no bar moves: in a log, a pipe, a container."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from iekd.compress import console
from iekd.compress.console import ConsoleObserver


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    return made


def test_a_long_stage_says_now_and_then_how_far_it_is(clock: Clock) -> None:
    out = io.StringIO()
    with ConsoleObserver(Console(file=out, width=40)) as observer:
        observer.stage_started("latency table", 52)
        for done in range(1, 14):
            clock.now += 10
            observer.stage_advanced("latency table", done, f"candidate{done} [int8] " + "0.3 ms " * 8)
        observer.stage_started("unknown", None)
        clock.now += 31
        observer.stage_advanced("unknown", 7, "figures")
    told = out.getvalue().splitlines()
    assert told[0] == "… Measure latencies of untrained "
    assert [line.split(":")[0] for line in told if " of 52" in line] == [
        "  3 of 52",
        "  6 of 52",
        "  9 of 52",
        "  12 of 52",
    ]
    assert any(line.startswith("  3 of 52: candidate3 [int8] 0.3 ms 0.3 ms") for line in told)
    assert told[-1] == "  7: figures"


def test_an_epochs_line_is_a_sign_of_life_too(clock: Clock) -> None:
    out = io.StringIO()
    with ConsoleObserver(Console(file=out)) as observer:
        observer.stage_started("student", 10)
        clock.now += 29
        observer.epoch_finished("student", 0, {"loss": 1.5, "lr": 0.1})
        clock.now += 2
        observer.stage_advanced("student", 1, "loss 1.4")
    assert out.getvalue().splitlines()[1:] == ["  student epoch 1: loss 1.5"]


def test_a_terminal_has_bars_alone(clock: Clock) -> None:
    out = io.StringIO()
    with ConsoleObserver(Console(file=out, force_terminal=True, width=120)) as observer:
        observer.stage_started("student", 10)
        clock.now += 60
        observer.stage_advanced("student", 4, "loss 1.4")
    assert "4 of 10:" not in out.getvalue()
