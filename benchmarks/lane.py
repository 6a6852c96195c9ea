"""One of many trainings on one device: what it reads, how it steps, and how it is kept between two runs.

A lane has a CUDA stream of its own; its whole step is captured once as a CUDA graph (images, learning rate and all) and
then only replayed.  It sees the images, the views, the order and the learning rates that
:func:`iekd.compress.trainer.fit` would give it, and takes the same steps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from resident import Resident
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn

from iekd.compress.clipping import Group, clip, clip_groups
from iekd.compress.trainer import FitSettings, learning_rate
from iekd.files import atomic_file
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
    apart: Sequence[Group] = ()
    """As :func:`fit` takes it."""
    tap: int = 0
    """Which of the teacher's maps it sees."""


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

    def read(self, indices: Tensor, tap: int = 0) -> Seen:
        """The batch of these image numbers (B,), with one of the teacher's maps."""
        wanted = (*self._kept[:2], *self._kept[2 + tap : 3 + tap])
        images, *answers = (kept.index_select(0, indices) for kept in wanted)
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
        self.groups = clip_groups(lane.task, lane.apart)
        self.order = torch.arange(self.steps * batch, device=device)
        self.within = torch.arange(batch, device=device)
        self.step_of_epoch, self.step_of_all = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.loss, self.clipped = (torch.zeros((), device=device) for _ in range(2))
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return int(self.step_of_all) // self.steps

    @property
    def clipped_share(self) -> float:
        """Share of its steps whose gradient was clipped."""
        return float(self.clipped) / max(1, int(self.step_of_all))

    def save(self, file: Path) -> None:
        """Write all that a later step depends on; between two epochs."""
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"task.{name}": value for name, value in self.lane.task.state_dict().items()}
        for number, parameter in enumerate(self._parameters()):
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{number}.{name}"] = value
        tensors["step"], tensors["clipped"] = self.step_of_all, self.clipped
        with atomic_file(file) as temporary:
            save_file(
                {
                    name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for name, value in tensors.items()
                },
                temporary,
                {"training": self._training()},
            )

    def load(self, file: Path) -> None:
        """Go on from what :meth:`save` wrote; a captured step reads it from the same memory.

        Raises:
            RuntimeError: the file is of another training.
        """
        with safe_open(file, "pt") as opened:
            if opened.metadata()["training"] != self._training():
                raise RuntimeError(f"{file}: this lane has other settings now; remove the file, or give another --out")
        tensors = load_file(file)
        self.lane.task.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("task.")})
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                parameter = self._parameters()[int(number)]
                state = self.optimizer.state[parameter]
                if key not in state:  # not captured, and no step taken yet
                    state[key] = torch.empty_like(parameter if value.shape == parameter.shape else value)
                state[key].copy_(value)
        self.step_of_all.copy_(tensors["step"])
        self.clipped.copy_(tensors["clipped"])

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _training(self) -> str:
        """What a kept state is good for."""
        return f"{self.lane.settings}, {self.steps} steps an epoch, clipped in {len(self.groups)} groups"

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
        for counter in (self.step_of_epoch, self.step_of_all, self.clipped):
            counter.zero_()

    def _own_stream(self) -> Any:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _update(self) -> None:
        """One step; nothing in it waits for the device, so that it can be captured."""
        first = self.step_of_epoch * len(self.within)
        with torch.no_grad():
            seen = self.board.read(self.order.index_select(0, first + self.within), self.lane.tap)
            self.rate.copy_(self.rates.index_select(0, self.step_of_all)[0])
            arguments = self.lane.inputs(seen)
        with self.board.autocast():
            terms = self.lane.task(*arguments)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.lane.settings.clip_norm is not None:
            self.clipped += clip(self.groups, self.lane.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss += loss.detach() / self.steps
        self.step_of_epoch += 1
        self.step_of_all += 1


def _last(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).contiguous()
