"""What a finished run's student learned: likeness to its teacher, and steadiness (docs/diagnostics.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from iekd.compress.config import RunConfig
from iekd.compress.data import ImageData
from iekd.compress.diagnostics.channels import active_channels, is_rectified
from iekd.compress.diagnostics.cka import FEWEST_IMAGES, likeness, random_differences
from iekd.compress.diagnostics.finished_run import FinishedRun, Split, open_run
from iekd.compress.diagnostics.summary import in_a_sentence
from iekd.compress.diagnostics.weight_noise import BATCH, accuracy_under_noise
from iekd.compress.job import reopen_data
from iekd.compress.objectives.catalogue import reads_maps
from iekd.compress.run_objective import Teacher, tap_teacher
from iekd.deploy.report import read_report, write_report
from iekd.deploy.results import Diagnosis, NoiseCurve, NoiseLevel, PartDiagnosis, TapDiagnosis
from iekd.errors import InputError, RunFolderError
from iekd.files import write_text
from iekd.models.preprocessing import Preprocessing

NOISE = (0.05, 0.1, 0.2, 0.3)
IMAGES = 1000
SEEDS = 5
FILE = "diagnosis.json"


class Images(NamedTuple):
    """Validation images, preprocessed (N, 3, H, W), and their classes (N,)."""

    pixels: Tensor
    labels: Tensor


def diagnose(
    run: Path,
    *,
    images: int = IMAGES,
    noise: Sequence[float] = NOISE,
    seeds: int = SEEDS,
    against: Path | None = None,
    data: ImageData | None = None,
    networks: Mapping[str, nn.Module] | None = None,
) -> Diagnosis:
    """Measure what the student that ships learned; write ``diagnosis.json``, and draw the run's report anew, if any.

    Args:
        run: folder of a run whose student is trained.
        images: validation images to measure on, or all where there are fewer.
        noise: relative standard deviations of the weight noise, beside 0.
        seeds: noises at each of them, 2 or more.
        against: a second run on the same data, whose student is put under the same noise.
        data: what the run was given, where that was not a name.
        networks: ``teacher`` and ``student`` of the run, where they were given as Python objects.

    Raises:
        InputError: too few images, or runs that cannot be compared.
        RunFolderError: not a run folder, unfinished, damaged, or in use.
    """
    levels = _levels(noise)
    if seeds < 2:
        raise InputError(f"--seeds {seeds} shows no spread.", "Give 2 or more.")
    own = open_run(run)
    other = None if against is None else open_run(against)
    if other is not None and other.data_digest != own.data_digest:
        raise InputError(f"{against} was made from other data than {run}.", "Compare runs on the same data and split.")
    data = data or reopen_data(own.config, "Call iekd.compress.diagnose.diagnose(run, data=...) from Python.")
    if data.digest != own.data_digest:
        raise RunFolderError(f"{run} was made from other data: what it was made from has changed since.")
    count = min(images, len(data.val))
    if count < FEWEST_IMAGES:
        raise InputError(f"{count} validation images tell nothing.", f"Give --images {FEWEST_IMAGES} or more.")
    with _held(run):
        found = _measure(own, other, data, count, levels, seeds, dict(networks or {}))
        write_text(run / FILE, found.model_dump_json(indent=2) + "\n")
        if (run / "report.json").is_file():
            report = read_report(run / "report.json")
            write_report(report.model_copy(update={"diagnosis": found}), run)
    return found


def parse_levels(text: str) -> tuple[float, ...]:
    """``0.05,0.1`` as numbers.

    Raises:
        InputError: something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--noise '{text}' is not a list of numbers.", "Give shares such as 0.05,0.1,0.2.") from error


def _levels(noise: Sequence[float]) -> list[float]:
    bad = [level for level in noise if not 0 <= level < float("inf")]
    if bad:
        raise InputError(f"weight noise of {bad[0]:g} standard deviations does not exist.", "Give 0 or more.")
    return sorted({0.0, *noise})


def _measure(
    run: FinishedRun,
    other: FinishedRun | None,
    data: ImageData,
    count: int,
    levels: list[float],
    seeds: int,
    networks: dict[str, nn.Module],
) -> Diagnosis:
    device = _device(run.config)
    made = {role: run.artefact(role, networks.get(role)) for role in ("teacher", "student")}
    size, asked = made["student"].preprocessing.size, {"teacher": run.config.teacher_taps, "student": run.config.taps}
    images = _images(data, made["student"].preprocessing, count)
    taps, sentence = [], ""
    try:
        pair = {role: tap_teacher(made[role].network, asked[role], size).to(device).eval() for role in made}
    except InputError as error:
        if reads_maps(run.shipped.objective):
            raise
        sentence = f"No likeness to the teacher: {error.message}"  # logits alone train networks without maps, too
    else:
        taps = _diagnose_taps(pair["teacher"], pair["student"], images.pixels, run)
        sentence = in_a_sentence(taps, run.shipped.objective)
    made["student"].network.to(device)
    curves = [NoiseCurve(name="student", levels=_noise(made["student"].network, images, levels, seeds))]
    if other is not None:
        rival = other.artefact("student", own=False)
        seen = _images(data, rival.preprocessing, count)
        name = f"student of {other.folder.resolve().name}"
        curves.append(NoiseCurve(name=name, levels=_noise(rival.network.to(device), seen, levels, seeds)))
    return Diagnosis(
        images=count,
        objective=run.shipped.objective,
        network=run.shipped.artefact,
        remark=run.shipped.remark,
        artefacts=run.fingerprints(),
        taps=taps,
        noise=curves,
        sentence=sentence,
    )


def _diagnose_taps(teacher: Teacher, student: Teacher, pixels: Tensor, run: FinishedRun) -> list[TapDiagnosis]:
    if len(teacher.stages) != len(student.stages):
        raise InputError(
            f"nothing to compare: {len(teacher.stages)} taps of the teacher, {len(student.stages)} of the student.",
            "Start a run with as many stages in --tap as in --teacher-tap.",
        )
    pairs = list(zip(_maps(teacher, pixels), _maps(student, pixels), strict=True))
    splits = run.splits([own.shape[1] for _, own in pairs])
    return [diagnose_tap(stage, *maps, split) for stage, maps, split in zip(student.stages, pairs, splits, strict=True)]


def diagnose_tap(stage: int, teacher: Tensor, student: Tensor, split: Split | None) -> TapDiagnosis:
    """One tap: the teacher's maps (N, C, H, W), the student's (N, C', H', W'), and its split."""
    indices = {} if split is None else {"inheritance": split.inherit, "exploration": split.explore}
    indices["all"] = torch.arange(student.shape[1])
    active = active_channels(student)
    found = likeness(teacher, {part: student.index_select(1, index) for part, index in indices.items()})
    inheritance, exploration = found.get("inheritance"), found.get("exploration")
    difference = inheritance.less(exploration) if inheritance and exploration else None
    return TapDiagnosis(
        stage=stage,
        teacher_shape=list(teacher.shape[1:]),
        student_shape=list(student.shape[1:]),
        rectified=is_rectified(student),
        parts=[
            PartDiagnosis(
                part=part,
                channels=len(index),
                active=int(active[index].sum()),
                cka=None if (like := found[part]) is None else like.interval(),
            )
            for part, index in indices.items()
        ],
        difference=difference,
        chance=None if difference is None else _chance(difference.value, teacher, student, len(indices["inheritance"])),
    )


def _chance(difference: float, teacher: Tensor, student: Tensor, inheriting: int) -> float:
    """One-sided permutation p-value: how often chance alone makes the parts differ as much."""
    by_chance = random_differences(teacher, student, inheriting)
    return float((1 + (by_chance >= difference).sum()) / (1 + len(by_chance)))


@torch.no_grad()
def _maps(network: Teacher, pixels: Tensor) -> list[Tensor]:
    """Each tap's maps (N, C, H, W) of all images, float32 on the CPU."""
    device = next(network.parameters()).device
    batches = [network(batch.to(device)).taps for batch in torch.split(pixels, BATCH)]
    return [torch.cat([tap.float().cpu() for tap in taps]) for taps in zip(*batches, strict=True)]


def _noise(network: nn.Module, images: Images, levels: list[float], seeds: int) -> list[NoiseLevel]:
    return accuracy_under_noise(network, images.pixels, images.labels, levels, seeds)


def _images(data: ImageData, preprocessing: Preprocessing, count: int) -> Images:
    """``count`` validation images spread over the set, as a model with this preprocessing sees them."""
    chosen = np.linspace(0, len(data.val) - 1, count).round().astype(int)
    samples = [data.val[int(index)] for index in chosen]
    pixels = torch.from_numpy(np.stack([preprocessing(image) for image, _ in samples]))
    return Images(pixels, torch.tensor([label for _, label in samples]))


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")


@contextmanager
def _held(run: Path) -> Iterator[None]:
    """The run folder's lock, for the length of a block."""
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(f"another run is writing to {run}.", "Wait for it.") from error
    try:
        yield
    finally:
        lock.release()
