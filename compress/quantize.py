"""Post-training quantisation and casts, as the target wants them: one function.

Which library quantises how is not decided here: each scheme lists recipes (:mod:`iekd.compress.quantizers`), all are
tried with all their calibrations on held-out images, through the files that would ship, and the best is kept.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from iekd.compress.calibration import Calibration, Images, choose_images
from iekd.compress.quantizers import SCHEMES
from iekd.compress.quantizers.candidates import Candidate, QuantizeResult, QuantizeSettings
from iekd.compress.quantizers.comparison import Comparison, open_file
from iekd.compress.quantizers.judge import Judge
from iekd.compress.sensitivity import exceeds, layer_names, relative_error
from iekd.compress.targets import TARGETS
from iekd.deploy import precision
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.graph_checks import load_float
from iekd.errors import InputError, VerificationError, unknown_name
from iekd.files import refuse_output_file

__all__ = ["CASTS", "Candidate", "QuantizeResult", "QuantizeSettings", "open_pair", "quantize", "refuse_quantized"]
CASTS = ("fp16", "bf16")


def quantize(
    source: Path,
    output: Path,
    *,
    scheme: str,
    images: Images,
    labels: NDArray[np.int64],
    held_out: tuple[Array, NDArray[np.int64]],
    settings: QuantizeSettings | None = None,
    against: Path | None = None,
) -> QuantizeResult:
    """Write ``source`` quantised, or cast, as ``scheme`` says.

    Args:
        source: a float32 ONNX file.
        output: the file to write, .onnx; where OpenVINO's own format wins, .xml and .bin take its place.
        scheme: one of ``SCHEMES``, fp16 or bf16.
        images: preprocessed training images (N, 3, H, W) to calibrate on, or a function that gives them in batches.
        labels: their class indices (N,).
        held_out: preprocessed images (M, 3, H, W) and class indices (M,) that decide between candidates; the accuracy
            that is reported of the final file should come from others.
        settings: None: the defaults.
        against: the float32 file from whose accuracy the loss is counted, where ``source`` was trained on from it to be
            quantised; None: ``source``.

    Raises:
        InputError: unknown scheme; too few images; a file that is quantised already or has nothing to quantise; a
            precision that the target lacks; an ``output`` that is a folder or what is read.
        EnvironmentMissingError: a library is missing; says how to install it.
        VerificationError: no file keeps the accuracy asked for, or the graph is not what the target needs.
    """
    settings = settings or QuantizeSettings()
    if scheme not in (*SCHEMES, *CASTS):
        raise unknown_name("quantisation scheme", scheme, (*SCHEMES, *CASTS))
    refuse_quantized(output, source, *([] if against is None else [against]))
    if settings.target:
        precision.check_reachable(SCHEMES[scheme].precision if scheme in SCHEMES else scheme, settings.target)
    start = time.perf_counter()
    model = load_float(source)
    chosen = choose_images(images, labels, count=settings.calibration_images, seed=settings.seed)
    calibration = Calibration(model, chosen)
    if not layer_names(calibration):
        raise InputError(
            f"{source} has nothing to quantise: no convolution and no matrix product.", "Ship it as it is."
        )
    if scheme in CASTS:
        return _cast(source, output, scheme, chosen, held_out, settings, start)
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(source, calibration, SCHEMES[scheme], held_out, settings, Path(folder))
        if against is not None:
            comparison.count_from(against)
        return comparison.run(output, scheme, start)


def refuse_quantized(output: Path, *sources: Path) -> None:
    """Refuse a place for a quantised file, where OpenVINO's two files may lie instead.

    Args:
        output: the file to write, as :func:`quantize` is given it.
        sources: files that are read.

    Raises:
        InputError: not an .onnx file, or one that would be written is a folder, below a file, or a source.
    """
    refuse_output_file(output, *sources)
    for suffix in (".xml", ".bin"):
        refuse_output_file(output.with_suffix(suffix), *sources)
    if output.suffix.lower() != ".onnx":
        raise InputError(
            f"{output} is not the name of an ONNX file.",
            f"Give {output.with_suffix('.onnx').name}; what OpenVINO's own format serves better becomes "
            f"{output.with_suffix('.xml').name}.",
        )


def open_pair(source: Path, made: Path, scheme: str) -> tuple[Session, Session]:
    """A float32 file and what :func:`quantize` made of it, as sessions that compute as the scheme's target does."""
    if scheme in CASTS:
        return get_backend("onnxruntime").load(source), precision.open_emulated(made)
    return get_backend(SCHEMES[scheme].backend).load(source), open_file(SCHEMES[scheme], made, 0)


def _cast(
    source: Path,
    output: Path,
    scheme: str,
    images: Array,
    held_out: tuple[Array, NDArray[np.int64]],
    settings: QuantizeSettings,
    start: float,
) -> QuantizeResult:
    judge = Judge(held_out)
    before, exact = judge.accuracy(get_backend("onnxruntime").load(source, threads=settings.threads))
    with tempfile.TemporaryDirectory() as folder:
        tensorrt = settings.target not in TARGETS or TARGETS[settings.target].builds_engines
        trial = precision.cast_onnx(
            source, Path(folder) / "cast.onnx", precision=scheme, images=images, tensorrt=tensorrt
        )
        after, logits = judge.accuracy(precision.open_emulated(trial.file, threads=settings.threads))
        drop = before.top1.value - after.top1.value
        if settings.enforce and settings.max_drop is not None and exceeds(drop, settings.max_drop):
            raise VerificationError(
                f"{scheme} loses {drop:.2%} of accuracy, {settings.max_drop:.2%} is allowed.",
                "Use bf16 for range, fp16 for digits, or allow more.",
            )
        file = precision.save_like(onnx.load(str(trial.file)), output, like=load_float(source), precision=scheme)
    chosen = Candidate("cast", "emulated", after.top1.value, relative_error(logits, exact))
    seconds = time.perf_counter() - start
    return QuantizeResult(file, scheme, chosen, (chosen,), before, after, trial.kept_float, (), None, seconds)
