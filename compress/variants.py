"""The student in the target's other precisions, each a file that could ship.

INT8 that loses more than the settings allow is trained for (:mod:`iekd.compress.qat`); what misses the limit even then
keeps layers in float, or does not ship.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iekd.compress.calibration import calibrated_on_few, choose_numbers
from iekd.compress.config import RunConfig
from iekd.compress.datasets.source import Labels
from iekd.compress.job import Job
from iekd.compress.precisions import INSTALL, precisions_asked
from iekd.compress.quantize import CASTS, QuantizeResult, QuantizeSettings, quantize
from iekd.compress.quantizers.candidates import LATENCY_SECONDS, name_layers
from iekd.compress.quantizers.simulated import GRIDS
from iekd.compress.sensitivity import exceeds
from iekd.compress.targets import TARGETS
from iekd.compress.views import chosen_arrays
from iekd.deploy.backends import Array
from iekd.deploy.engine import check_precision
from iekd.errors import InputError, VerificationError
from iekd.files import write_json

FOLDER = "variants"
QAT_ARTEFACT = f"{FOLDER}/qat"
"""The student trained under simulated INT8, where it was."""
_STUDENT = "student.onnx"
_TRAINED = f"{QAT_ARTEFACT}/{_STUDENT}"
_INDEX = "variants.json"
_JUDGED_BY = "training images that do not calibrate"


@dataclass(frozen=True)
class Variant:
    """One file."""

    precision: str
    file: str
    """Relative to the run folder."""

    @property
    def name(self) -> str:
        """In tables and traces."""
        return f"student-{self.precision}"


Labelled = tuple[Array, Labels]
"""Preprocessed images float32 (N, 3, H, W), and their class indices (N,)."""
Once = Callable[[Callable[[], Any]], Any]
"""Lets the main process do some work, and gives the result to every process."""
Train = Callable[[str], dict[str, Any]]
"""Writes ``QAT_ARTEFACT`` for a scheme, in all processes; returns what to record."""


def make_variants(job: Job, once: Once, train: Train) -> dict[str, Any]:
    """Stage ``quantize``: ``variants/`` with a file for each precision asked for, but for those that lose too much.

    With ``best``, and where ``max_drop`` was given, layers stay in float until a precision loses no more than that on
    training images that do not calibrate.  Where none suffice, ``best`` leaves it out; a precision that was asked for
    by name ships in any case, and that it loses too much is remarked.

    Args:
        job: the run.
        once: for the work of one process.
        train: for the work of all.
    """
    asked = precisions_asked(job.config)
    maker = _Maker(job, once, train)
    found: list[dict[str, Any]] = []
    refused: list[str] = []
    job.observer.stage_started("quantize", len(asked))
    for number, precision in enumerate(asked):
        if reason := unreachable(job.config, precision):
            refused.append(f"{precision}: {reason}")
            continue
        try:
            entry = maker.make(precision)
        except VerificationError as error:
            if job.config.precision != "best":
                raise
            refused.append(f"{precision}: {error.message}")
            maker.discard(precision)
            continue
        found.append(entry)
        job.observer.stage_advanced("quantize", number + 1, f"{precision}: {entry['how']}")
    once(lambda: write_json(job.folder / FOLDER / _INDEX, {"variants": found, "refused": refused}))
    made_names = ", ".join(f"{entry['precision']} ({entry['how']})" for entry in found) or "none kept its accuracy"
    return {"refused": refused, "remarks": maker.remarks, "note": made_names, **maker.training}


def unreachable(config: RunConfig, precision: str) -> str:
    """Why the GPU that builds and measures here lacks the precision; empty where it has it, or is not asked."""
    if not TARGETS[config.target].runs_engines:
        return ""
    try:
        check_precision(precision)
    except InputError as error:
        return error.message
    return ""


class _Maker:
    """Makes one precision after the other, from the student or from what training under quantisation made of it."""

    def __init__(self, job: Job, once: Once, train: Train) -> None:
        self.job, self.once, self.train = job, once, train
        self.target = TARGETS[job.config.target]
        self.images = training_images(job) if job.accelerator.is_main_process else None
        self.remarks: list[str] = []
        if self.images and (few := calibrated_on_few(len(self.images[0][1]))):
            self.remarks.append(f"The other precisions than float32 were {few}.")
        self.training: dict[str, Any] = {}

    def make(self, precision: str) -> dict[str, Any]:
        """Write the file and its description; returns its entry in the index."""
        scheme = self.target.schemes[precision]
        made, trained = self._wanted(precision, scheme)
        how = "cast" if scheme in CASTS else f"{made.chosen.recipe}, {made.chosen.method}"
        if trained and trained["ships"]:
            how += f", trained with {trained['objective']}"
        self._remark_on_cost(precision, made)
        description = {**made.to_json(), "qat": trained}
        self.once(lambda: write_json(self.job.folder / FOLDER / f"student-{precision}.json", description))
        return {"precision": precision, "file": f"{FOLDER}/{made.file.name}", "how": how}

    def discard(self, precision: str) -> None:
        """Remove what was tried on the way to a precision that does not ship."""
        self.once(functools.partial(self._remove, precision))

    def _remove(self, precision: str) -> None:
        for path in (self.job.folder / FOLDER).glob(f"student-{precision}.*"):
            path.unlink()

    def _wanted(self, precision: str, scheme: str) -> tuple[QuantizeResult, dict[str, Any] | None]:
        """The result that ships, and what training did, where there was any."""
        config = self.job.config
        if scheme not in GRIDS or config.qat == "never":
            return self._within_limit(precision, _STUDENT), None
        plain = self._quantized(precision, _STUDENT, enforce=False)
        if not self._worth_training(precision, plain):
            enough = not config.enforces_drop or not exceeds(plain.drop, config.drop_limit)
            return plain if enough else self._within_limit(precision, _STUDENT), None
        record = self.train(scheme)
        self.training = {"epochs": record["epochs"], "curves": record.pop("curves")}
        after = self._quantized(precision, _TRAINED, enforce=False)
        better = after.drop <= plain.drop
        record |= {"drop_before": plain.drop, "drop_after": after.drop, "ships": better, "untrained": plain.to_json()}
        self._remark(precision, record)
        if better and (not config.enforces_drop or not exceeds(after.drop, config.drop_limit)):
            return after, record
        return self._within_limit(precision, _TRAINED if better else _STUDENT), record

    def _within_limit(self, precision: str, source: str) -> QuantizeResult:
        """With as many layers in float as the limit needs, where it is enforced.

        A precision by name for which none suffice ships as it is, all layers in it.

        Raises:
            VerificationError: as the quantisation does; of the limit only with ``best``, which leaves the file out.
        """
        config = self.job.config
        try:
            return self._quantized(precision, source, config.enforces_drop)
        except VerificationError as error:
            if config.precision == "best" or not config.enforces_drop:
                raise
            self.remarks.append(f"{precision}: {error.message}")
            return self._quantized(precision, source, enforce=False)

    def _worth_training(self, precision: str, plain: QuantizeResult) -> bool:
        config = self.job.config
        if config.qat == "auto" and not exceeds(plain.drop, config.drop_limit):
            return False
        if importlib.util.find_spec("nncf") is None:
            self.remarks.append(
                f"{precision} loses {plain.drop:.2%} and was not trained for: NNCF is not installed ({INSTALL})."
            )
            return False
        return True

    def _remark(self, precision: str, record: dict[str, Any]) -> None:
        text = (
            f"{precision} lost {record['drop_before']:.2%} of accuracy on {_JUDGED_BY}, after {record['epochs']} "
            f"epochs of {record['objective']} under simulated quantisation {record['drop_after']:.2%}"
        )
        self.remarks.append(text + ("." if record["ships"] else ": what ships is not trained for it."))

    def _remark_on_cost(self, precision: str, made: QuantizeResult) -> None:
        """What the file costs beside its training: layers that are not in the precision, a limit that does not hold."""
        if made.kept_float:
            self.remarks.append(f"{precision}: {name_layers(made.kept_float)}.")
        config = self.job.config
        if exceeds(made.drop, config.drop_limit):
            instead = "leave it out" if config.enforces_drop else "mend it or leave it out, --max-drop if given mend it"
            self.remarks.append(
                f"{precision} loses {made.drop:.2%} of accuracy on {_JUDGED_BY}, more than --max-drop "
                f"{config.drop_limit:g}: it was asked for by name and ships in any case; --precision best would "
                f"{instead}."
            )

    def _quantized(self, precision: str, source: str, enforce: bool) -> QuantizeResult:
        """The file of this precision from ``source``; the loss is counted from the student's own float32 file."""
        job, folder = self.job, self.job.folder

        def work() -> QuantizeResult | VerificationError:
            assert self.images is not None, "the main process has them"
            (images, labels), held_out = self.images
            settings = QuantizeSettings(
                calibration_images=len(labels),
                seed=job.config.seed,
                max_drop=job.config.drop_limit,
                enforce=enforce,
                target=self.target.name,
                threads=job.config.threads or 0,
                latency_seconds=min(LATENCY_SECONDS, job.config.bench_seconds),
            )
            self._remove(precision)  # what was tried before may be in another format, under another name
            try:
                return quantize(
                    folder / source,
                    folder / FOLDER / f"student-{precision}.onnx",
                    scheme=self.target.schemes[precision],
                    images=images,
                    labels=labels,
                    held_out=held_out,
                    settings=settings,
                    against=None if source == _STUDENT else folder / _STUDENT,
                )
            except VerificationError as error:
                return error  # to be raised by every process

        result: QuantizeResult | VerificationError = self.once(work)
        if isinstance(result, VerificationError):
            raise result
        return result


def read_variants(folder: Path) -> list[Variant]:
    """The variants of a run; none where it made none."""
    index = folder / FOLDER / _INDEX
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))["variants"]
    return [Variant(entry["precision"], entry["file"]) for entry in entries]


def training_images(job: Job, count: int | None = None) -> tuple[Labelled, Labelled]:
    """Training images that calibrate, and others that decide; accuracy is reported on the validation set.

    Chosen by their labels, before any is decoded: see :func:`iekd.compress.calibration.choose_numbers`.

    Args:
        job: the run.
        count: how many calibrate.  None: ``CALIBRATION_IMAGES``, or half of all.
    """
    source = job.data.train
    calibrating, judging = choose_numbers(source.targets, count, job.config.seed)
    return (
        chosen_arrays(source, job.preprocessing, calibrating),
        chosen_arrays(source, job.preprocessing, judging),
    )
