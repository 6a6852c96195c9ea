"""The one teacher of the table of methods, and its answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from table_bench import Bench
from torch import Tensor, nn

from iekd.compress.teacher import Supervised
from iekd.files import atomic_file, write_json
from iekd.models.checkpoint import load_artefact
from iekd.models.taps import Features, Tapped


class TeacherAnswers:
    """The teacher's logits and maps for every image and recurring view, or the teacher itself where views are fresh."""

    def __init__(self, bench: Bench, teacher: Tapped) -> None:
        self.teacher, self.train = teacher, bench.train
        hangs_on = json.dumps([bench.settings_of("factors-"), teacher.names])
        which = hashlib.sha256(hangs_on.encode()).hexdigest()[:12]
        files = [bench.folder / f"answers-{which}-{view}" for view in range(bench.recipe.views or 0)]
        self.kept = [self._keep(file, view) for view, file in enumerate(files)]

    def _keep(self, file: Path, view: int) -> Features:
        """The answers to one view of all images, asked once and shared by all workers through a file."""
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                parts = [self._ask(part, view) for part in torch.split(torch.arange(len(self.train)), 500)]
                taps = torch.cat([part.taps[0] for part in parts]).half().contiguous()
                with atomic_file(file) as temporary:
                    save_file({"logits": torch.cat([part.logits for part in parts]), "taps": taps}, temporary)
            found = load_file(file, device=str(self.train.targets.device))
        return Features(found["logits"], (found["taps"],))

    @torch.no_grad()
    def _ask(self, indices: Tensor, view: int) -> Features:
        answer = self.teacher(self.train.view(indices.to(self.train.targets.device), view))
        return Features(answer.logits.float(), answer.taps)

    def __call__(self, indices: Tensor, view: int) -> Features:
        """Its answer to a batch."""
        if not self.kept:
            return self._ask(indices, view)
        kept = self.kept[view]
        return Features(kept.logits[indices], tuple(tap[indices].float() for tap in kept.taps))


def train_teacher(bench: Bench) -> Tapped:
    """The one teacher of all rows; trained once, or given, and kept as ``teacher/`` (weights in half precision)."""
    with FileLock(bench.folder / "teacher.lock"):
        if not teacher_is_kept(bench):
            teacher, data = bench.tapped(bench.arguments.teacher, 0, "teacher"), bench.teacher_train
            if given := bench.arguments.teacher_from:
                trained = load_artefact(given, teacher.network).network
                teacher.network.load_state_dict(trained.state_dict())
            else:
                task, epochs = Supervised(teacher.network), bench.recipe.teacher_epochs
                bench.fit(task, "teacher", epochs, 0, lambda b: (data.view(b[0], b[2]), b[1]), data)
            keep_teacher(bench, teacher)
    return load_teacher(bench)


def teacher_is_kept(bench: Bench) -> bool:
    """Is there one already?"""
    return (bench.folder / "teacher" / "teacher.json").exists()


def keep_teacher(bench: Bench, teacher: Tapped) -> None:
    """Write a trained teacher, and its accuracy as every row will see it."""
    weights = bench.folder / "teacher" / "weights.safetensors"
    save_half(weights, teacher.network)
    _load(teacher, weights)
    given = bench.arguments.teacher_from
    facts = {
        "teacher": bench.arguments.teacher,
        "top1": bench.top1(teacher.network),
        **(
            {"given": str(given)}
            if given
            else {"images": len(bench.teacher_train), "epochs": bench.recipe.teacher_epochs}
        ),
    }
    write_json(bench.folder / "teacher" / "teacher.json", facts)


def save_half(file: Path, network: nn.Module) -> None:
    """Weights in half precision."""
    file.parent.mkdir(exist_ok=True)
    state = network.state_dict()
    half = {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in state.items()}
    with atomic_file(file) as temporary:
        save_file(half, temporary)


def load_teacher(bench: Bench) -> Tapped:
    """What every row sees, this process or another."""
    teacher = bench.tapped(bench.arguments.teacher, 0, "teacher")
    _load(teacher, bench.folder / "teacher" / "weights.safetensors")
    teacher.eval().requires_grad_(False)
    return teacher


def at_tap(teacher: Tapped, tap: int | str, size: int) -> Tapped:
    """The same network, read at another stage; ``size``: height and width of the images."""
    return Tapped(teacher.network, (tap,), size).eval()


def _load(teacher: Tapped, weights: Path) -> None:
    teacher.network.load_state_dict(load_file(weights))
