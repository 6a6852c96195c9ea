"""Many small trainings side by side on one device, all over the same images.

A small network leaves a large GPU idle: its step is hundreds of kernels of some microseconds each.  Here every training
is a lane of its own (see lane.py), and a teacher answers once an epoch for all lanes.  A training that was cut goes on
from the last epoch that its lanes kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lane import Board, Lane, Runner
from resident import Resident

from iekd.models.taps import Tapped

LANE_FILE = "lane.safetensors"


def train_side_by_side(
    lanes: Sequence[Lane],
    data: Resident,
    teacher: Tapped | None,
    batch: int,
    autocast: Callable[[], Any],
    views: int | None = None,
    told: Callable[[int, dict[str, float]], None] = lambda epoch, losses: None,
    kept: Path | None = None,
    keep_every: float = 60.0,
) -> dict[str, float]:
    """Train every lane's task in place, each for its own epochs; returns the share of clipped steps of each.

    Args:
        lanes: the trainings.
        data: images and views of all lanes.
        teacher: frozen, or None where no lane asks for one.
        batch: images a step.
        autocast: context of the forward; its cache of cast weights must be off.
        views: how many recurring views there are; None: every epoch shows another.
        told: after each epoch, with its number and every lane's mean loss.
        kept: folder of the lanes' states, from which a training that was cut goes on; None: nothing is kept.
        keep_every: seconds from one state to the next; the last one is always kept.

    Raises:
        RuntimeError: a lane's step cannot be captured, its loss stopped being finite, or its kept state is of another
            training; names the lane.
    """
    board = Board(data, teacher, autocast)
    runners = _ready(lanes, board, batch, kept)
    written = time.monotonic()
    last = max(lane.settings.epochs for lane in lanes)
    for epoch in range(min(runner.epoch for runner in runners), last):
        active = [runner for runner in runners if runner.epoch <= epoch < runner.lane.settings.epochs]
        if not active:
            continue
        board.show(epoch if views is None else epoch % views)
        losses = _run_epoch(active, epoch)
        due = time.monotonic() - written >= keep_every
        for runner in active:
            if kept is not None and (due or epoch + 1 == runner.lane.settings.epochs):
                runner.save(_file(kept, runner.lane))
        written = time.monotonic() if due else written
        told(epoch, losses)
    for runner in runners:
        runner.lane.task.eval()
    return {runner.lane.name: runner.clipped_share for runner in runners}


def forget(kept: Path, name: str) -> None:
    """Remove the state of a lane that is not needed any more."""
    (kept / name / LANE_FILE).unlink(missing_ok=True)


def _ready(lanes: Sequence[Lane], board: Board, batch: int, kept: Path | None) -> list[Runner]:
    """Every lane, its step captured where the device can, where it was left."""
    board.show(0)
    runners = [Runner(lane, board, batch) for lane in lanes]
    for runner in runners:
        if runner.stream is not None:
            try:
                runner.capture()
            except RuntimeError as error:
                raise RuntimeError(f"{runner.lane.name}: its step cannot be captured: {error}") from error
        if kept is not None and _file(kept, runner.lane).exists():
            runner.load(_file(kept, runner.lane))
    return runners


def _run_epoch(active: Sequence[Runner], epoch: int) -> dict[str, float]:
    """One epoch of every active lane, and its mean losses."""
    for runner in active:
        runner.lane.task.train()
        runner.begin(epoch)
    _wait()
    for _ in range(active[0].steps):
        for runner in active:
            runner.step()
    _wait()
    losses = {runner.lane.name: runner.loss.item() for runner in active}
    bad = [name for name, loss in losses.items() if not abs(loss) < float("inf")]
    if bad:
        raise RuntimeError(f"{', '.join(bad)}: the loss is not finite in epoch {epoch + 1}")
    return losses


def _file(kept: Path, lane: Lane) -> Path:
    return kept / lane.name / LANE_FILE


def _wait() -> None:
    """All streams have done all they were given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
