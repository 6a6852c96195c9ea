"""The student in the target's other precisions, each a file that could ship.

INT8 that loses more than the settings allow is trained for (:mod:`iekd.compress.qat`); what misses the limit even then
keeps layers in float, or does not ship.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.config import RunConfig
from iekd.compress.job import Job
from iekd.compress.quantize import CASTS, QuantizeResult, QuantizeSettings, quantize
from iekd.compress.quantizers.candidates import name_layers
from iekd.compress.quantizers.simulated import GRIDS, Grid
from iekd.compress.targets import TARGETS
from iekd.deploy.engine import check_precision
from iekd.errors import EnvironmentMissingError, InputError, VerificationError, unknown_name
from iekd.files import write_json

FOLDER = "variants"
QAT_ARTEFACT = f"{FOLDER}/qat"
"""The student trained under simulated INT8, where it was."""
_STUDENT = "student.onnx"
_TRAINED = f"{QAT_ARTEFACT}/{_STUDENT}"
_INDEX = "variants.json"
IMAGES = 1024
"""Training images that calibrate and decide, half each; accuracy is reported on the validation set."""


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


def precisions_asked(config: RunConfig) -> tuple[str, ...]:
    """Beside fp32, the precisions to make.

    Raises:
        InputError: the target has not the one that was asked for.
    """
    has = tuple(TARGETS[config.target].schemes)
    if config.precision == "fp32":
        return ()
    if config.precision == "best":
        return has
    if config.precision not in has:
        raise unknown_name(f"precision of {config.target}", config.precision, ("fp32", "best", *has))
    return (config.precision,)


_NEEDS = {
    "fp16": "onnxconverter_common",
    "bf16": "onnxconverter_common",
    "int8-openvino": "nncf",
    "fp8-tensorrt": "modelopt",
}
_INSTALL = "pip install 'iekd-compress[quantize]'"


def require_quantizers(config: RunConfig) -> None:
    """Refuse, before anything is trained, precisions that cannot be made.

    Raises:
        InputError: a precision that the target has not, or ``--qat always`` without one that it serves.
        EnvironmentMissingError: what they need is not installed.
    """
    asked = {precision: TARGETS[config.target].schemes[precision] for precision in precisions_asked(config)}
    for precision, scheme in asked.items():
        needed = _NEEDS.get(scheme)
        if needed and importlib.util.find_spec(needed) is None:
            how = "pip install nvidia-modelopt requests onnx-graphsurgeon lief"
            raise EnvironmentMissingError(
                f"{precision} for {config.target} needs {needed}, which is not installed.",
                how if needed == "modelopt" else _INSTALL,
            )
    if config.qat != "always":
        return
    if not set(asked.values()) & set(GRIDS):
        raise InputError(
            f"--qat always trains for int8, which --precision {config.precision} of {config.target} does not make.",
            "Add --precision int8 for a target that has it, or leave --qat out.",
        )
    if importlib.util.find_spec("nncf") is None:
        raise EnvironmentMissingError("--qat needs NNCF, which is not installed.", _INSTALL)


def grids_to_train(config: RunConfig) -> list[Grid]:
    """Those for which the student may come to be trained: none where that was not asked for, or NNCF is missing."""
    if config.qat == "never" or importlib.util.find_spec("nncf") is None:
        return []
    schemes = TARGETS[config.target].schemes
    return [GRIDS[schemes[precision]] for precision in precisions_asked(config) if schemes[precision] in GRIDS]


Once = Callable[[Callable[[], Any]], Any]
"""Lets the main process do some work, and gives the result to every process."""
Train = Callable[[str], dict[str, Any]]
"""Writes ``QAT_ARTEFACT`` for a scheme, in all processes; returns what to record."""


def make_variants(job: Job, once: Once, train: Train) -> dict[str, Any]:
    """Stage ``quantize``: ``variants/`` with a file for each precision asked for, but for those that lose too much.

    With ``best`` a precision that loses more than ``max_drop`` on held-out images does not ship; layers stay in float
    until it does.  A precision that was asked for by name is made in any case; that it loses too much is remarked.

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
        self.images: Any = None
        self.labels: Any = None
        if job.accelerator.is_main_process:
            self.images, self.labels = training_images(job)
        self.remarks: list[str] = []
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

        def work() -> None:
            for path in (self.job.folder / FOLDER).glob(f"student-{precision}.*"):
                path.unlink()

        self.once(work)

    def _wanted(self, precision: str, scheme: str) -> tuple[QuantizeResult, dict[str, Any] | None]:
        """The result that ships, and what training did, where there was any."""
        config = self.job.config
        enforce = config.precision == "best"
        if scheme not in GRIDS or config.qat == "never":
            return self._quantized(precision, _STUDENT, enforce), None
        plain = self._quantized(precision, _STUDENT, enforce=False)
        if not self._worth_training(precision, plain):
            enough = not enforce or plain.drop <= config.max_drop
            return plain if enough else self._quantized(precision, _STUDENT, enforce), None
        record = self.train(scheme)
        self.training = {"epochs": record["epochs"], "curves": record.pop("curves")}
        after = self._quantized(precision, _TRAINED, enforce=False)
        better = after.drop <= plain.drop
        record |= {"drop_before": plain.drop, "drop_after": after.drop, "ships": better, "untrained": plain.to_json()}
        self._remark(precision, record)
        if better and (not enforce or after.drop <= config.max_drop):
            return after, record
        return self._quantized(precision, _TRAINED if better else _STUDENT, enforce), record

    def _worth_training(self, precision: str, plain: QuantizeResult) -> bool:
        config = self.job.config
        if config.qat == "auto" and plain.drop <= config.max_drop:
            return False
        if importlib.util.find_spec("nncf") is None:
            self.remarks.append(
                f"{precision} loses {plain.drop:.2%} and was not trained for: NNCF is not installed ({_INSTALL})."
            )
            return False
        return True

    def _remark(self, precision: str, record: dict[str, Any]) -> None:
        text = (
            f"{precision} lost {record['drop_before']:.2%} of accuracy on held-out images, after {record['epochs']} "
            f"epochs of {record['objective']} under simulated quantisation {record['drop_after']:.2%}"
        )
        self.remarks.append(text + ("." if record["ships"] else ": what ships is not trained for it."))

    def _remark_on_cost(self, precision: str, made: QuantizeResult) -> None:
        """What the file costs beside its training: layers that are not in the precision, a limit that does not hold."""
        if made.kept_float:
            self.remarks.append(f"{precision}: {name_layers(made.kept_float)}.")
        limit = self.job.config.max_drop
        if made.drop > limit:
            self.remarks.append(
                f"{precision} loses {made.drop:.2%} of accuracy on held-out images, more than --max-drop {limit:g}: "
                "it was asked for by name and ships in any case; --precision best would mend it or leave it out."
            )

    def _quantized(self, precision: str, source: str, enforce: bool) -> QuantizeResult:
        """The file of this precision from ``source``; the loss is counted from the student's own float32 file."""
        job, folder = self.job, self.job.folder

        def work() -> QuantizeResult | VerificationError:
            settings = QuantizeSettings(
                calibration_images=min(256, len(self.labels[::2])),
                seed=job.config.seed,
                max_drop=job.config.max_drop,
                enforce=enforce,
                target=self.target.name,
                threads=job.config.threads or 0,
            )
            try:
                return quantize(
                    folder / source,
                    folder / FOLDER / f"student-{precision}.onnx",
                    scheme=self.target.schemes[precision],
                    images=self.images[::2],
                    labels=self.labels[::2],
                    held_out=(self.images[1::2], self.labels[1::2]),
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


def training_images(job: Job) -> tuple[Any, Any]:
    """Images that calibrate and decide, in random order: float32 (N, 3, H, W), and their class indices (N,)."""
    source = job.data.train
    chosen = np.linspace(0, len(source) - 1, min(IMAGES, len(source))).round().astype(int)
    chosen = np.random.default_rng(job.config.seed).permutation(chosen)  # images may lie sorted by class
    pairs = [source[int(index)] for index in chosen]
    images = np.stack([job.preprocessing(image) for image, _ in pairs])
    return images, np.array([target for _, target in pairs], dtype=np.int64)
