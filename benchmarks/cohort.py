"""Many small trainings side by side on one device, all over the same images.

A small network leaves a large GPU idle: its step is hundreds of kernels of some microseconds each.  Here every training
(a lane) has a stream of its own, its whole step is captured once as a CUDA graph (images, learning rate and all) and
then only replayed, and a teacher answers once an epoch for all lanes.  A lane sees the images, the views, the order and
the learning rates that :func:`iekd.compress.trainer.fit` would give it, and takes the same steps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from resident import Resident
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn

from iekd.compress.trainer import FitSettings, learning_rate
from iekd.models.taps import Features, Tapped

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # queues into the GPU; with the usual 8, lanes wait in line
AT_ONCE = 1000
"""Images that the teacher answers to in one forward."""
WARM_UP = 3


class Seen(NamedTuple):
    """One batch as a lane sees it."""

    images: Tensor
    targets: Tensor
    teacher: Features | None


@dataclass(frozen=True)
class Lane:
    """One training."""

    name: str
    task: nn.Module
    """As :func:`fit` takes it: everything trainable, and a forward that returns named loss terms."""
    seed: int
    settings: FitSettings
    inputs: Callable[[Seen], tuple[Any, ...]]
    """The task's arguments, without gradient."""


class Board:
    """What all lanes read: this epoch's view of every image, and the teacher's answers to it."""

    def __init__(self, data: Resident, teacher: Tapped | None, autocast: Callable[[], Any]) -> None:
        self.data, self.teacher, self.autocast = data, teacher, autocast
        self._indices = torch.split(torch.arange(len(data), device=data.targets.device), AT_ONCE)
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def show(self, view: int) -> None:
        """Put up another view, in the same memory."""
        for part in self._indices:
            answers = self._answers(self.data.view(part, view))
            if not self._kept:
                self._kept = [one.new_empty(len(self.data), *one.shape[1:]) for one in answers]
            for kept, one in zip(self._kept, answers, strict=True):
                kept[part] = one

    def _answers(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps are kept with channels last, which is how a lane wants them."""
        if self.teacher is None:
            return (_last(images),)
        with self.autocast():
            found = self.teacher(images)
        return (_last(images), found.logits.float(), *(_last(tap.half()) for tap in found.taps))

    def read(self, indices: Tensor) -> Seen:
        """The batch of these image numbers (B,)."""
        images, *answers = (kept.index_select(0, indices) for kept in self._kept)
        taps = tuple(tap.permute(0, 3, 1, 2).float() for tap in answers[1:])
        teacher = Features(answers[0], taps) if answers else None
        return Seen(images.permute(0, 3, 1, 2), self.data.targets.index_select(0, indices), teacher)


class Runner:
    """A lane in motion."""

    def __init__(self, lane: Lane, board: Board, batch: int) -> None:
        self.lane, self.board = lane, board
        device = board.data.targets.device
        self.steps = len(board.data) // batch
        lane.task.to(device).to(memory_format=torch.channels_last)
        settings = lane.settings
        total = settings.epochs * self.steps
        self.rates = torch.tensor([learning_rate(settings, step, self.steps) for step in range(total)], device=device)
        self.rate = torch.tensor(settings.lr, device=device)  # a tensor, so that a captured step can read another one
        self.optimizer = create_optimizer_v2(
            lane.task, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.order = torch.arange(self.steps * batch, device=device)
        self.within = torch.arange(batch, device=device)
        self.step_of_epoch, self.step_of_all = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.loss = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self, epoch: int) -> None:
        """Shuffle for the next epoch."""
        order = self.board.data.order(epoch, self.lane.seed)
        self.order.copy_(order[: len(self.order)])
        self.step_of_epoch.zero_()
        self.loss.zero_()

    def step(self) -> None:
        """One update, in this lane's stream."""
        with self._own_stream():
            if self.graph is not None:
                self.graph.replay()
            else:
                self._update()

    def capture(self) -> None:
        """Record the step as a CUDA graph; what the rehearsals changed is put back."""
        assert self.stream is not None
        self.lane.task.train()
        before = {name: value.clone() for name, value in self.lane.task.state_dict().items()}
        self.stream.wait_stream(torch.cuda.current_stream())
        with self._own_stream():
            for _ in range(WARM_UP):
                self._update()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._update()
        self.graph = graph
        for name, value in self.lane.task.state_dict().items():
            value.copy_(before[name])
        for state in self.optimizer.state.values():
            for buffer in state.values():
                buffer.zero_()  # a first step finds no buffers, which comes to the same
        self.step_of_epoch.zero_()
        self.step_of_all.zero_()

    def _own_stream(self) -> Any:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _update(self) -> None:
        """One step; nothing in it waits for the device, so that it can be captured."""
        first = self.step_of_epoch * len(self.within)
        with torch.no_grad():
            seen = self.board.read(self.order.index_select(0, first + self.within))
            self.rate.copy_(self.rates.index_select(0, self.step_of_all)[0])
            arguments = self.lane.inputs(seen)
        with self.board.autocast():
            terms = self.lane.task(*arguments)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.lane.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.lane.task.parameters(), self.lane.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss += loss.detach() / self.steps
        self.step_of_epoch += 1
        self.step_of_all += 1


def train_side_by_side(
    lanes: Sequence[Lane],
    data: Resident,
    teacher: Tapped | None,
    batch: int,
    autocast: Callable[[], Any],
    views: int | None = None,
    told: Callable[[int, dict[str, float]], None] = lambda epoch, losses: None,
) -> None:
    """Train every lane's task in place, each for its own epochs.

    Args:
        lanes: the trainings.
        data: images and views of all lanes.
        teacher: frozen, or None where no lane asks for one.
        batch: images a step.
        autocast: context of the forward; its cache of cast weights must be off.
        views: how many recurring views there are; None: every epoch shows another.
        told: after each epoch, with its number and every lane's mean loss.

    Raises:
        RuntimeError: a lane's step cannot be captured, or its loss stopped being finite; names the lane.
    """
    board = Board(data, teacher, autocast)
    board.show(0)
    runners = [Runner(lane, board, batch) for lane in lanes]
    for runner in runners:
        if runner.stream is not None:
            try:
                runner.capture()
            except RuntimeError as error:
                raise RuntimeError(f"{runner.lane.name}: its step cannot be captured: {error}") from error
    for epoch in range(max(lane.settings.epochs for lane in lanes)):
        active = [runner for runner in runners if epoch < runner.lane.settings.epochs]
        if epoch:
            board.show(epoch if views is None else epoch % views)
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
        told(epoch, losses)
    for runner in runners:
        runner.lane.task.eval()


def _last(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).contiguous()


def _wait() -> None:
    """All streams have done all they were given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
