"""What runs under one frozen teacher share: it says the same to all of them, so it is asked once.

The folder, ``Job.shared``, belongs to a search.  It holds the teacher's whole answers to each view of the training
images, what objectives learned from the teacher alone, and the teacher's ONNX file; each is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from iekd.compress.job import Job
from iekd.compress.objectives.catalogue import reads_before_activation
from iekd.compress.teacher_cache import bytes_needed
from iekd.compress.views import Batch
from iekd.files import atomic_file, disk_errors, write_json
from iekd.models.taps import Features, TapShape

Ask = Callable[[Tensor], Features]


class SharedAnswers:
    """A frozen teacher's logits and taps, asked for a whole view of the training images at a time and kept, rounded to
    half precision.

    Args:
        ask: the teacher: images (B, 3, H, W) to its answer.
        job: a run; its ``shared`` folder holds the answers.
    """

    def __init__(self, ask: Ask, job: Job) -> None:
        assert job.shared is not None
        self.ask, self.job, self.folder = ask, job, job.shared / as_asked("answers", job)
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})

    def __call__(self, batch: Batch) -> Features:
        """The answer to a batch, all of one view, float32."""
        view = int(batch.view[0])
        if self._held[0] != view:
            self._held = (view, self._view(view))
        rows = [self._held[1][name][batch.index.cpu()].float().to(batch.image.device) for name in sorted(self._held[1])]
        return Features(rows[0], tuple(rows[1:]))

    def _view(self, view: int) -> dict[str, Tensor]:
        file = self.folder / f"view{view}.safetensors"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                if not file.exists():
                    with atomic_file(file) as temporary:
                        save_file(self._compute(view), temporary)
        return load_file(file)

    @torch.no_grad()
    def _compute(self, view: int) -> dict[str, Tensor]:
        """By the names under which they are kept: the logits come first, then the taps in their order."""
        answers = [self.ask(batch.image.to(self.job.device)) for batch in self.job.view_loader(view)]
        parts = [torch.cat(part) for part in zip(*((answer.logits, *answer.taps) for answer in answers), strict=True)]
        return {f"part{number:03d}": part.half().cpu().contiguous() for number, part in enumerate(parts)}


def answers_of(ask: Ask, shapes: tuple[TapShape, ...], job: Job, views: int) -> Callable[[Batch], Features]:
    """The teacher's answer to a batch; shared where runs share a folder and --cache-gib has room for all views.

    Args:
        ask: the teacher.
        shapes: of its taps.
        job: the run.
        views: that recur; 0: none does, so that there is nothing to share.
    """
    needed = bytes_needed(((job.classes,), *(tuple(shape) for shape in shapes)), len(job.data.train), views)
    if job.shared is None or not 0 < needed <= job.config.cache_gib * 2**30:
        return lambda batch: ask(batch.image)
    return SharedAnswers(ask, job)


def as_asked(name: str, job: Job) -> str:
    """Name of what is kept of the teacher's answers.

    Those in mixed precision are others than those in float32, and maps before an activation others than behind it.
    """
    mixed = job.accelerator.mixed_precision
    early = "-before" if reads_before_activation(job.config.objective) else ""
    return f"{name}{early}" if mixed == "no" else f"{name}{early}-{mixed}"


def shared_checkpoints(job: Job, name: str, *identity: object) -> Path:
    """Folder of the checkpoints of a training that hangs on the teacher and ``identity`` alone, not on the student."""
    if job.shared is None:
        return job.folder / "checkpoints" / name
    text = json.dumps([str(part) for part in identity])
    return job.shared / "checkpoints" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def shared_facts(job: Job, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``find`` says, in JSON types; of the runs that share a folder only the first asks it."""
    if job.shared is None:
        return find()
    file = job.shared / f"{name}.json"
    with disk_errors(file):
        job.shared.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                write_json(file, find())
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def shared_file(job: Job, path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Let ``make`` write the file ``path`` of the run, or copy the one that another run made; returns what it said."""
    if job.shared is None:
        return make(path)
    original = job.shared / path.name
    facts = shared_facts(job, path.stem, lambda: make(original))
    with atomic_file(path) as temporary:
        shutil.copyfile(original, temporary)
    return facts
