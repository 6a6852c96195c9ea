r"""What a setting of the training is worth to the student: rows of settings over seeds, under one finished teacher.

    iekd-compress teacher --teacher resnet50 --student mobilenetv2_100 --out runs/teacher
    python benchmarks/training_settings.py --teacher runs/teacher/teacher --student mobilenetv2_100 \
        --out runs/settings --seeds 0 1 2 --rows usual kd_weight=3 inherit_weight=33.15,kd_weight=3 -- epochs=4

A row is a list of settings of `iekd-compress distill` joined by commas; `usual` is none.  What stands behind `--` holds
for all rows.  Every row of a seed sees the same views in the same order, and the teacher is asked once for each of
them.  Accuracy is the network's on the validation images.  Started again, the command trains what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from paired import Scores, difference

from iekd.compress.config_input import make_config
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.texts import slug
from iekd.errors import IekdError, InputError
from iekd.models.checkpoint import read_description

USUAL = "usual"


class Training(NamedTuple):
    """One student."""

    row: str
    seed: int
    settings: dict[str, str]
    """Of the row and of all rows."""
    out: Path

    @property
    def folder(self) -> Path:
        """Its run."""
        return self.out / f"{slug(self.row)}-{self.seed}"


def main() -> None:
    arguments = read_arguments()
    try:
        trainings = [
            Training(row, seed, {**arguments.common, **settings_of(row)}, arguments.out)
            for seed in arguments.seeds
            for row in arguments.rows
        ]
        scores = train(trainings, arguments.jobs, arguments.threads)
    except IekdError as error:
        sys.exit(f"{error}")
    print(render(scores, float(read_description(Path(arguments.common["teacher"]))["facts"]["accuracy"])))


def train(trainings: list[Training], jobs: int, threads: int) -> Scores:
    """Accuracy of each row by seed, in per cent; all rows of a seed share the teacher's answers."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    scores: Scores = {training.row: {} for training in trainings}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for training, accuracy in zip(trainings, pool.map(top1, trainings), strict=True):
            scores[training.row][training.seed] = accuracy
            print(f"{training.row}  seed {training.seed}: {accuracy:.2f} %", flush=True)
    return scores


def top1(training: Training) -> float:
    """Train it, unless an earlier start did; accuracy in per cent."""
    config = make_config({**training.settings, "seed": training.seed, "out": str(training.folder)})
    shared = training.out / f"shared-{training.seed}"
    run_stages(config, config.teacher, config.student, config.data, Observer(), until="distill", shared=shared)
    return 100 * float(read_description(training.folder / "student")["facts"]["accuracy"])


def settings_of(row: str) -> dict[str, str]:
    """The settings that a row spells out.

    Raises:
        InputError: it is no list of NAME=VALUE.
    """
    return {} if row == USUAL else dict(pair(text) for text in row.split(","))


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE as both.

    Raises:
        InputError: it is not of that form.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"'{text}' is no setting.", "Write NAME=VALUE, such as kd_weight=3.")
    return name.strip(), value.strip()


def render(scores: Scores, teacher: float) -> str:
    """A Markdown table, and a line on the best row of it."""
    first = next(iter(scores))
    lines = [
        f"Teacher: {100 * teacher:.2f} %.",
        "",
        f"| settings | top-1 by seed, % | mean | over `{first}` [95 %], paired |",
        "|---|---|---:|---|",
    ]
    means = {row: sum(own.values()) / len(own) for row, own in scores.items()}
    for row, own in scores.items():
        over = "" if row == first else str(difference(scores, row, first))
        lines.append(
            f"| `{row}` | {', '.join(f'{own[seed]:.2f}' for seed in sorted(own))} | {means[row]:.2f} | {over} |"
        )
    best = max(means, key=lambda row: means[row])
    return "\n".join([*lines, "", f"RESULT best={best} over_{slug(first)}={means[best] - means[first]:+.2f}"])


def read_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="an artefact: RUN/teacher")
    parser.add_argument("--student", default="mobilenetv2_100")
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept; the same folder resumes")
    parser.add_argument("--rows", nargs="+", default=[USUAL])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("common", nargs="*", help="settings of all rows, NAME=VALUE, behind --")
    arguments = parser.parse_args(given)
    try:
        given_to_all = dict(pair(text) for text in arguments.common)
    except InputError as error:
        parser.error(str(error))
    arguments.common = {"teacher": arguments.teacher, "student": arguments.student, **given_to_all}
    return arguments


if __name__ == "__main__":
    main()
