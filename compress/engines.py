"""``iekd-compress build``: an ONNX file in the precision asked for, and the engine that TensorRT makes of it here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.calibration import choose_numbers
from iekd.compress.data import ImageData, load_data
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.targets import TARGETS
from iekd.compress.views import chosen_arrays, plain_arrays
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Session, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.device.engine_watch import Progress
from iekd.deploy.device.errors import detached
from iekd.deploy.engine import BuildSettings, BuiltEngine, build, check_precision, domain_errors
from iekd.deploy.export import read_metadata
from iekd.errors import IekdError, InputError, unknown_name

SCHEMES = TARGETS["tensorrt"].schemes
PRECISIONS = ("fp32", *SCHEMES, "best")
LATENCY_IMAGES = 64
WORTH = 0.99
"""With ``best``: share of the float32 file's accuracy that another precision must keep."""


@dataclass(frozen=True)
class Choice:
    """One precision's engine, and what was measured where several were compared."""

    precision: str
    onnx: Path
    engine: BuiltEngine
    accuracy: float | None = None
    median_ms: float | None = None


def check_target(name: str) -> None:
    """Raise InputError unless engines for the target ``name`` are built on this machine."""
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    if TARGETS[name].on_board:
        raise InputError(
            f"an engine for {name} is built on the board, for its own GPU and TensorRT.",
            "`iekd-compress bundle RUN`, then `iekd-compress deploy user@board BUNDLE`: that builds it there.",
        )
    if TARGETS[name].backend != "tensorrt":
        raise InputError(f"the target {name} runs no engine: {TARGETS[name].summary}.", "Leave --target out.")


def build_engines(
    model: Path,
    precision: str,
    settings: BuildSettings,
    *,
    data: str | None,
    folder: Path,
    val_fraction: float | None = None,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
    log: Any = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> list[Choice]:
    """Build the engine, or with ``best`` one a precision, the best first.

    Args:
        model: a float32 ONNX file, or any for ``fp32``, which builds the file as it is.
        precision: one of ``PRECISIONS``.
        settings: how to build.
        data: images as ``--data`` names them; every precision but fp32 needs them.
        folder: for the ONNX files in other precisions.
        val_fraction: share of the images kept for validation, where they are one tree.
        skip_bad_images: leave out those that cannot be read.
        progress: called with the share of the present build that is done, and its phase.
        log: called with each line of TensorRT's log.
        tell: with ``best``, called with each precision that is left out, and why.

    Raises:
        InputError: unknown precision, no data, or what :func:`build` refuses; with ``best``, if it refuses them all.
        EnvironmentMissingError: no TensorRT or no GPU; told before anything is converted.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if not model.is_file():
        raise InputError(f"no ONNX file at {model}.", "Check the path.")
    with domain_errors():
        settings.check()
    get_backend("tensorrt").require()
    if precision == "fp32":
        return [Choice("fp32", model, build(model, settings, progress=progress, log=log))]
    images = _images(data, val_fraction, skip_bad_images)
    make = functools.partial(build, settings=settings, progress=progress, log=log)
    if precision == "best":
        return _best(model, images, folder, make, tell)
    check_precision(precision)
    file = convert(model, precision, images, folder)
    return [Choice(precision, file, make(file))]


def _best(
    model: Path,
    images: ImageData,
    folder: Path,
    make: Callable[[Path], BuiltEngine],
    tell: Callable[[str], None],
) -> list[Choice]:
    """Every precision that can be had here, the best first."""
    attempts = _Attempts(tell)
    files = {"fp32": model}
    for name in SCHEMES:
        with attempts.of(name):
            check_precision(name)
            files[name] = convert(model, name, images, folder)
    built: dict[str, BuiltEngine] = {}
    for name, file in files.items():
        with attempts.of(name):
            built[name] = make(file)
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name, engine in built.items():
            with attempts.of(name):
                sessions[name] = get_backend("tensorrt").load(engine.path)
                stack.callback(sessions[name].close)
        if not sessions and attempts.last is not None:
            raise attempts.last
        return _ranked(files, built, sessions, images, folder)


class _Attempts:
    """What is tried for each precision; one that cannot be had is told and left out, and the others remain.

    It may fail on this GPU, with this accuracy, or with the packages or the memory that are here.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.last: IekdError | None = None

    @contextlib.contextmanager
    def of(self, precision: str) -> Iterator[None]:
        """What is tried for ``precision``."""
        try:
            yield
        except IekdError as error:
            self.last = detached(error)
            self.tell(f"{precision} is left out: {error}")


def convert(model: Path, precision: str, data: ImageData, folder: Path) -> Path:
    """``model`` in another precision, as TensorRT wants it; ``FOLDER/NAME-PRECISION.onnx``.

    Raises:
        InputError: as :func:`iekd.compress.quantize.quantize`.
        VerificationError: it loses more than a point of accuracy whatever stays in float.
    """
    chosen = choose_numbers(data.train.targets, None, seed=0)
    preprocessing = read_metadata(model).preprocessing
    (images, labels), held_out = (chosen_arrays(data.train, preprocessing, numbers) for numbers in chosen)
    return quantize(
        model,
        folder / f"{model.stem}-{precision}.onnx",
        scheme=SCHEMES[precision],
        images=images,
        labels=labels,
        held_out=held_out,
        settings=QuantizeSettings(calibration_images=len(labels)),
    ).file


def _ranked(
    files: dict[str, Path],
    built: dict[str, BuiltEngine],
    sessions: dict[str, Session],
    data: ImageData,
    folder: Path,
) -> list[Choice]:
    """The fastest of those that keep their accuracy, then the others by speed."""
    preprocessing = read_metadata(files["fp32"]).preprocessing

    def accuracy_of(session: Session) -> float:
        return measure_accuracy(session, plain_arrays(data, preprocessing), data.classes)[0].top1.value

    accuracy = {name: accuracy_of(session) for name, session in sessions.items()}
    if "fp32" in accuracy:
        whole = accuracy["fp32"]
    else:  # its engine was refused; what the others must keep is the file's accuracy all the same
        with contextlib.closing(get_backend("onnxruntime").load(files["fp32"])) as session:
            whole = accuracy_of(session)
    least = max(session.batch_range[0] for session in sessions.values())
    images, _ = some_arrays(data.val, files["fp32"], max(LATENCY_IMAGES, least))
    run = measure_latency(sessions, images, folder=folder / "traces", batch=least)
    found = [
        Choice(name, files[name], built[name], accuracy[name], run.latency[name].median.value) for name in sessions
    ]
    return sorted(found, key=lambda one: (_value(one) < WORTH * whole, one.median_ms))


def _value(choice: Choice) -> float:
    return choice.accuracy or 0.0


def _images(data: str | None, val_fraction: float | None, skip_bad_images: bool) -> ImageData:
    if data is None:
        raise InputError(
            "another precision than fp32 needs images to calibrate on.", "Add --data, as for the main job."
        )
    return load_data(data, val_fraction=val_fraction, skip_bad_images=skip_bad_images)


def some_arrays(source: Any, model: Path, count: int) -> tuple[Any, Any]:
    """``count`` images (or all) spread over ``source``, as ``model`` takes them, shuffled; and their classes."""
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return chosen_arrays(source, read_metadata(model).preprocessing, np.random.default_rng(0).permutation(chosen))
