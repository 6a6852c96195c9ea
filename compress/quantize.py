"""Post-training quantisation and casts, as the target wants them: one function.

Which library quantises how is not decided here: each scheme lists recipes (:mod:`iekd.compress.quantizers`), all are
tried with all their calibrations on held-out images, through the files that would ship, and the best is kept.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from iekd.compress.calibration import METHODS, Calibration, Images, choose_images
from iekd.compress.quantizers import SCHEMES, Quantizer, Scheme, make_quantizer
from iekd.compress.sensitivity import LayerCost, fewest_kept, layer_names, rank_layers, relative_error
from iekd.deploy import precision
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.backends.reference import ReferenceSession
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.graph_checks import float_layers, is_quantized, load_float, require_tensorrt_graph
from iekd.deploy.results import Accuracy
from iekd.errors import InputError, VerificationError, unknown_name
from iekd.files import atomic_file

CASTS = ("fp16", "bf16")
SAME_ACCURACY = 0.001
"""A recipe within a tenth of a point of the most accurate one, or within one image, may win by its latency."""
SAME_LATENCY = 1.02
_FLOAT = "float32"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How to quantise."""

    calibration_images: int = 256
    """Chosen from those given, balanced over the classes."""
    seed: int = 0
    methods: tuple[str, ...] = METHODS
    """Calibrations to compare, for recipes that leave the choice open."""
    recipes: tuple[str, ...] = ()
    """Of the scheme's, those to try; empty: all."""
    max_drop: float | None = 0.01
    """Most accuracy that may be lost, 0..1; layers stay in float until it holds.  None: whatever comes."""
    keep_float: tuple[str, ...] = ()
    """Layers (names of ONNX nodes) to leave in float in any case."""
    target: str | None = None
    """The board, where it is known: a precision that it lacks is refused."""
    threads: int = 0
    """Of the sessions; 0: the runtime's default."""
    latency_seconds: float = 2.0
    """Measured for each recipe, where latency decides."""


@dataclass(frozen=True)
class Candidate:
    """One file that was tried."""

    recipe: str
    method: str
    accuracy: float
    """On the held-out images."""
    error: float
    """Energy of the logits' change / energy of the logits, on the held-out images."""
    latency_ms: float | None = None
    """Median, batch 1, where latency decides; the float32 file's is in :attr:`QuantizeResult.float_latency_ms`."""


@dataclass(frozen=True)
class QuantizeResult:
    """What was written, and what it cost."""

    file: Path
    scheme: str
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    before: Accuracy
    after: Accuracy
    """Both on the held-out images, by the same backend."""
    kept_float: tuple[str, ...]
    sensitivity: tuple[LayerCost, ...]
    """Dearest first; empty where the limit held at once."""
    float_latency_ms: float | None
    seconds: float

    @property
    def drop(self) -> float:
        """Accuracy lost, 0..1; negative where it grew."""
        return self.before.top1.value - self.after.top1.value

    def to_json(self) -> dict[str, Any]:
        """JSON types alone."""
        value = asdict(self)
        records = {"before": self.before.model_dump(), "after": self.after.model_dump()}
        return {**value, **records, "file": self.file.name, "drop": self.drop}


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
            precision that the target lacks.
        EnvironmentMissingError: a library is missing; says how to install it.
        VerificationError: no file keeps the accuracy asked for, or the graph is not what the target needs.
    """
    settings = settings or QuantizeSettings()
    if scheme not in (*SCHEMES, *CASTS):
        raise unknown_name("quantisation scheme", scheme, (*SCHEMES, *CASTS))
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
        search = _Search(source, calibration, SCHEMES[scheme], held_out, settings, Path(folder))
        if against is not None:
            search.count_from(against)
        return search.run(output, scheme, start)


class _Search:
    """The comparison of all candidates for one scheme."""

    def __init__(
        self,
        source: Path,
        calibration: Calibration,
        scheme: Scheme,
        held_out: tuple[Array, NDArray[np.int64]],
        settings: QuantizeSettings,
        folder: Path,
    ) -> None:
        self.calibration, self.scheme, self.settings, self.folder = calibration, scheme, settings, folder
        self.judge = _Judge(held_out)
        self.reference = get_backend(scheme.backend).load(source, threads=settings.threads)
        self.before, self.exact = self.judge.accuracy(self.reference)
        names = settings.recipes or scheme.recipes
        for name in names:
            if name not in scheme.recipes:
                raise unknown_name("recipe of this scheme", name, scheme.recipes)
        self.recipes = {name: make_quantizer(name, calibration) for name in names}
        self.kept = settings.keep_float
        unknown = set(self.kept) - set(layer_names(calibration))
        if unknown:
            raise unknown_name("layer", sorted(unknown)[0], layer_names(calibration))

    def count_from(self, against: Path) -> None:
        """Count what is lost from this file's accuracy."""
        session = get_backend(self.scheme.backend).load(against, threads=self.settings.threads)
        self.before, _ = self.judge.accuracy(session)

    def run(self, output: Path, scheme: str, start: float) -> QuantizeResult:
        """Try all, keep the best, keep layers in float until the limit holds, check, write."""
        tried = [self.best_method(name) for name in self.recipes]
        best = [min(self.as_accurate(candidates), key=lambda candidate: candidate.error) for candidates in tried]
        float_latency, best = self.timed(best) if self.scheme.timed else (None, best)
        winner = _fastest(self.as_accurate(best))
        ranking: tuple[LayerCost, ...] = ()
        if self.missed(self.before.top1.value - winner.accuracy):
            ranking = self.rank(winner)
            self.kept = (*self.kept, *self.fewest(ranking, winner))
        path, after = self.written(winner.recipe, winner.method, self.kept)
        file = self.ship(path, output)
        return QuantizeResult(
            file=file,
            scheme=scheme,
            chosen=winner,
            candidates=tuple(candidate for group in tried for candidate in group),
            before=self.before,
            after=after,
            kept_float=self.kept,
            sensitivity=ranking,
            float_latency_ms=float_latency,
            seconds=time.perf_counter() - start,
        )

    def best_method(self, recipe: str) -> list[Candidate]:
        """One recipe with each calibration."""
        available = self.recipes[recipe].methods
        methods = [method for method in available if method in self.settings.methods or method not in METHODS]
        if not methods:
            raise unknown_name("calibration", ", ".join(self.settings.methods), available)
        found = []
        for method in methods:
            path = self.path(recipe, method)
            self.recipes[recipe].write(path, method, self.kept)
            accuracy, logits = self.judge.accuracy(self.open(path))
            error = relative_error(logits, self.exact)
            found.append(Candidate(recipe, method, accuracy.top1.value, error))
        return found

    def as_accurate(self, candidates: list[Candidate]) -> list[Candidate]:
        """See :func:`_as_accurate`."""
        return _as_accurate(candidates, self.before.top1.value, len(self.judge.images))

    def timed(self, candidates: list[Candidate]) -> tuple[float, list[Candidate]]:
        """Median latency of the float32 file and of each candidate, interleaved in one run."""
        sessions = {
            candidate.recipe: self.open(self.path(candidate.recipe, candidate.method)) for candidate in candidates
        }
        run = measure_latency(
            {_FLOAT: self.reference, **sessions},
            self.judge.images[:_BATCH],
            folder=self.folder,
            seconds=self.settings.latency_seconds,
        )
        medians = {name: latency.median.value for name, latency in run.latency.items()}
        return medians[_FLOAT], [
            Candidate(**{**asdict(candidate), "latency_ms": medians[candidate.recipe]}) for candidate in candidates
        ]

    def rank(self, winner: Candidate) -> tuple[LayerCost, ...]:
        """What each layer costs; OpenVINO's own format is ranked by ONNX Runtime's quantiser, layer by layer alike."""
        recipe, method = winner.recipe, winner.method
        if self.recipes[recipe].suffix != ".onnx":
            recipe, method = "ort-u8s7", METHODS[0]
        quantizer: Quantizer = self.recipes.get(recipe) or make_quantizer(recipe, self.calibration)
        ranking = rank_layers(self.calibration, quantizer, method)
        return tuple(cost for cost in ranking if cost.layer not in self.kept)

    def fewest(self, ranking: tuple[LayerCost, ...], winner: Candidate) -> tuple[str, ...]:
        """The fewest of the dearest layers with which the limit holds."""

        def drop(kept: tuple[str, ...]) -> float:
            _, after = self.written(winner.recipe, winner.method, (*self.kept, *kept))
            return self.before.top1.value - after.top1.value

        assert self.settings.max_drop is not None
        count = fewest_kept(ranking, drop, self.settings.max_drop)
        if count is None:
            raise VerificationError(
                f"{winner.recipe} loses {self.before.top1.value - winner.accuracy:.2%} of accuracy, "
                f"{self.settings.max_drop:.2%} is allowed, and no share of layers in float makes up for it.",
                f"The dearest layer is {ranking[0].layer}.  Use fp16 or bf16, allow more, or train with quantisation.",
            )
        return tuple(cost.layer for cost in ranking[:count])

    def missed(self, drop: float) -> bool:
        """Is more accuracy lost than allowed?"""
        return self.settings.max_drop is not None and drop > self.settings.max_drop

    def written(self, recipe: str, method: str, kept: tuple[str, ...]) -> tuple[Path, Accuracy]:
        """The file with these layers in float, and its accuracy."""
        path = self.path(recipe, method)
        self.recipes[recipe].write(path, method, kept)
        return path, self.judge.accuracy(self.open(path))[0]

    def path(self, recipe: str, method: str) -> Path:
        """Where a candidate lies."""
        return self.folder / f"{recipe}-{method}{self.recipes[recipe].suffix}"

    def open(self, path: Path) -> Session:
        """A candidate as a session of the scheme's backend."""
        if not self.scheme.timed:  # as the target computes; this processor may saturate
            return ReferenceSession(path, threads=self.settings.threads)
        return get_backend(self.scheme.backend).load(path, threads=self.settings.threads)

    def ship(self, path: Path, output: Path) -> Path:
        """Check the winner's graph and put it in its place, with our metadata."""
        if path.suffix != ".onnx":
            for suffix in (".bin", path.suffix):
                with atomic_file(output.with_suffix(suffix)) as temporary:
                    shutil.copyfile(path.with_suffix(suffix), temporary)
            return output.with_suffix(path.suffix)
        model = onnx.load(str(path))
        if not is_quantized(model):
            raise VerificationError(
                f"{path.stem} left every layer of the network in float.", "Its layers may be too narrow; ship fp16."
            )
        if self.scheme.library_keeps:
            self.kept = (*self.kept, *(name for name in float_layers(model) if name not in self.kept))
        if self.scheme.tensorrt:
            require_tensorrt_graph(model, self.kept)
        return precision.save_like(model, output, like=self.calibration.model, precision=self.scheme.precision)


class _Judge:
    """The held-out images, and what a session makes of them."""

    def __init__(self, held_out: tuple[Array, NDArray[np.int64]]) -> None:
        self.images, self.labels = held_out
        if not len(self.images) or len(self.images) != len(self.labels):
            raise InputError(
                f"there are {len(self.images)} held-out images and {len(self.labels)} labels.",
                "Give one label an image.",
            )

    def accuracy(self, session: Session) -> tuple[Accuracy, Array]:
        """Accuracy, and all logits (M, classes)."""
        recorder = _Recorder(session)
        starts = range(0, len(self.images), _BATCH)
        batches = ((self.images[at : at + _BATCH], self.labels[at : at + _BATCH]) for at in starts)
        accuracy, _ = measure_accuracy(recorder, batches, ())
        return accuracy, np.concatenate(recorder.answers)


class _Recorder:
    """A session that keeps what it answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.input_shape = session.input_shape
        self.answers: list[Array] = []

    def run(self, images: Array) -> Array:
        """See :class:`iekd.deploy.backends.Session`."""
        self.answers.append(self._session.run(images))
        return self.answers[-1]

    def describe(self) -> dict[str, str]:
        """See :class:`iekd.deploy.backends.Session`."""
        return self._session.describe()

    def close(self) -> None:
        """See :class:`iekd.deploy.backends.Session`."""
        self._session.close()


def _as_accurate(candidates: list[Candidate], before: float, images: int) -> list[Candidate]:
    """Those as accurate as the best, or as the float32 file (``before``) where that is less.

    A file that happens to be right where the float32 file errs is not a better one, and one image more or less of a few
    hundred tells no two files apart; how far the logits are changed does.
    """
    best = min(before, max(candidate.accuracy for candidate in candidates))
    slack = max(SAME_ACCURACY, 1 / images) + 1e-9
    return [candidate for candidate in candidates if candidate.accuracy >= best - slack]


def _fastest(equal: list[Candidate]) -> Candidate:
    """The fastest; of those as fast, the one that changes the logits least."""
    fastest = min(candidate.latency_ms or 0.0 for candidate in equal)
    return min(
        (candidate for candidate in equal if (candidate.latency_ms or 0.0) <= fastest * SAME_LATENCY),
        key=lambda candidate: candidate.error,
    )


def _cast(
    source: Path,
    output: Path,
    scheme: str,
    images: Array,
    held_out: tuple[Array, NDArray[np.int64]],
    settings: QuantizeSettings,
    start: float,
) -> QuantizeResult:
    judge = _Judge(held_out)
    before, exact = judge.accuracy(get_backend("onnxruntime").load(source, threads=settings.threads))
    with tempfile.TemporaryDirectory() as folder:
        trial = precision.cast_onnx(source, Path(folder) / "cast.onnx", precision=scheme, images=images)
        after, logits = judge.accuracy(precision.open_emulated(trial.file, threads=settings.threads))
        drop = before.top1.value - after.top1.value
        if settings.max_drop is not None and drop > settings.max_drop:
            raise VerificationError(
                f"{scheme} loses {drop:.2%} of accuracy, {settings.max_drop:.2%} is allowed.",
                "Use bf16 for range, fp16 for digits, or allow more.",
            )
        file = precision.save_like(onnx.load(str(trial.file)), output, like=load_float(source), precision=scheme)
    chosen = Candidate("cast", "emulated", after.top1.value, relative_error(logits, exact))
    seconds = time.perf_counter() - start
    return QuantizeResult(file, scheme, chosen, (chosen,), before, after, trial.kept_float, (), None, seconds)
