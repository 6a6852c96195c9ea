"""The student in the target's other precisions, each a file that could ship."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.config import RunConfig
from iekd.compress.job import Job
from iekd.compress.quantize import CASTS, QuantizeSettings, quantize
from iekd.compress.targets import TARGETS
from iekd.errors import EnvironmentMissingError, VerificationError, unknown_name
from iekd.files import write_json

FOLDER = "variants"
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


def require_quantizers(config: RunConfig) -> None:
    """Raise EnvironmentMissingError unless what the precisions asked for need is installed."""
    for precision in precisions_asked(config):
        needed = _NEEDS.get(TARGETS[config.target].schemes[precision])
        if needed and importlib.util.find_spec(needed) is None:
            how = "pip install nvidia-modelopt requests onnx-graphsurgeon lief"
            raise EnvironmentMissingError(
                f"{precision} for {config.target} needs {needed}, which is not installed.",
                how if needed == "modelopt" else "pip install 'iekd-compress[quantize]'",
            )


def make_variants(job: Job) -> dict[str, Any]:
    """Stage ``quantize``: ``variants/`` with a file for each precision asked for, but for those that lose too much.

    With ``best`` a precision may lose one point on held-out images, and layers stay in float until that holds; a
    precision that was asked for by name is made in any case.
    """
    target = TARGETS[job.config.target]
    asked = precisions_asked(job.config)
    images, labels = _training_images(job)
    job.observer.stage_started("quantize", len(asked))
    found, refused = [], []
    for number, precision in enumerate(asked):
        output = job.folder / FOLDER / f"student-{precision}.onnx"
        settings = QuantizeSettings(
            calibration_images=min(256, len(labels[::2])),
            seed=job.config.seed,
            max_drop=0.01 if job.config.precision == "best" else None,
            target=target.name,
            threads=job.config.threads or 0,
        )
        try:
            made = quantize(
                job.folder / "student.onnx",
                output,
                scheme=target.schemes[precision],
                images=images[::2],
                labels=labels[::2],
                held_out=(images[1::2], labels[1::2]),
                settings=settings,
            )
        except VerificationError as error:
            if job.config.precision != "best":
                raise
            refused.append(f"{precision}: {error.message}")
            continue
        how = "cast" if target.schemes[precision] in CASTS else f"{made.chosen.recipe}, {made.chosen.method}"
        found.append({"precision": precision, "file": f"{FOLDER}/{made.file.name}", "how": how})
        write_json(job.folder / FOLDER / f"student-{precision}.json", made.to_json())
        job.observer.stage_advanced("quantize", number + 1, f"{precision}: {how}")
    write_json(job.folder / FOLDER / _INDEX, {"variants": found, "refused": refused})
    made_names = ", ".join(f"{entry['precision']} ({entry['how']})" for entry in found) or "none kept its accuracy"
    return {"refused": refused, "note": made_names}


def read_variants(folder: Path) -> list[Variant]:
    """The variants of a run; none where it made none."""
    index = folder / FOLDER / _INDEX
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))["variants"]
    return [Variant(entry["precision"], entry["file"]) for entry in entries]


def _training_images(job: Job) -> tuple[Any, Any]:
    source = job.data.train
    chosen = np.linspace(0, len(source) - 1, min(IMAGES, len(source))).round().astype(int)
    chosen = np.random.default_rng(job.config.seed).permutation(chosen)  # images may lie sorted by class
    pairs = [source[int(index)] for index in chosen]
    images = np.stack([job.preprocessing(image) for image, _ in pairs])
    return images, np.array([target for _, target in pairs], dtype=np.int64)
