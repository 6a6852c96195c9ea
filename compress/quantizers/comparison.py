"""The comparison of all quantisers and calibrations of one scheme, through the files that would ship."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from iekd.compress.calibration import METHODS, Calibration
from iekd.compress.quantizers import Quantizer, Scheme, make_quantizer, recipes_for
from iekd.compress.quantizers.candidates import Candidate, QuantizeResult, QuantizeSettings, as_accurate, fastest_of
from iekd.compress.quantizers.judge import BATCH, Judge
from iekd.compress.sensitivity import LayerCost, exceeds, fewest_kept, layer_names, rank_layers, relative_error
from iekd.deploy import precision
from iekd.deploy.backends import Array, Session, get_backend
from iekd.deploy.backends.reference import ReferenceSession
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.graph_checks import float_layers, is_quantized, require_tensorrt_graph
from iekd.deploy.openvino_format import SUFFIX, has_quantized_layer, read_entries
from iekd.deploy.results import Accuracy
from iekd.errors import IekdError, VerificationError, unknown_name
from iekd.files import atomic_file

_FLOAT = "float32"


class Comparison:
    """All candidates of one scheme; :meth:`run` writes the best."""

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
        self.judge = Judge(held_out)
        self.reference = get_backend(scheme.backend).load(source, threads=settings.threads)
        self.before, self.exact = self.judge.accuracy(self.reference)
        names = settings.recipes or recipes_for(scheme, calibration.model)
        for name in names:
            if name not in scheme.recipes:
                raise unknown_name("recipe of this scheme", name, scheme.recipes)
        self.recipes = {name: make_quantizer(name, calibration) for name in names}
        self.lying: dict[Path, tuple[tuple[str, ...], Candidate, Accuracy]] = {}
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
        float_latency, best = self.timed(best)
        winner = fastest_of(self.as_accurate(best))
        ranking: tuple[LayerCost, ...] = ()
        if self.settings.enforce and self.missed(winner.accuracy):
            winner, ranking, dearest = self.mended(winner, best)
            self.kept = (*self.kept, *dearest)
        made, after = self.written(winner.recipe, winner.method, self.kept)
        chosen = winner
        if ranking:  # what ships is another file than the one that won
            float_latency, (chosen,) = self.timed([made])
        file = self.ship(self.path(winner.recipe, winner.method), output)
        timed = {(candidate.recipe, candidate.method): candidate for candidate in best}
        return QuantizeResult(
            file=file,
            scheme=scheme,
            chosen=chosen,
            candidates=tuple(timed.get((one.recipe, one.method), one) for group in tried for one in group),
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
        return [self.written(recipe, method, self.kept)[0] for method in methods]

    def as_accurate(self, candidates: list[Candidate]) -> list[Candidate]:
        """See :func:`as_accurate`."""
        return as_accurate(candidates, self.before.top1.value, len(self.judge.images), self.settings.max_drop)

    def timed(self, candidates: list[Candidate]) -> tuple[float | None, list[Candidate]]:
        """Median latency of the float32 file and of each candidate, interleaved in one run, where latency decides."""
        if not self.scheme.timed:
            return None, candidates
        sessions = {
            candidate.recipe: self.open(self.path(candidate.recipe, candidate.method)) for candidate in candidates
        }
        run = measure_latency(
            {_FLOAT: self.reference, **sessions},
            self.judge.images[:BATCH],
            folder=self.folder,
            seconds=self.settings.latency_seconds,
        )
        medians = {name: latency.median.value for name, latency in run.latency.items()}
        return medians[_FLOAT], [replace(one, latency_ms=medians[one.recipe]) for one in candidates]

    def mended(
        self, winner: Candidate, best: list[Candidate]
    ) -> tuple[Candidate, tuple[LayerCost, ...], tuple[str, ...]]:
        """A recipe that keeps the limit with layers in float, what each layer costs it, and those that stay in float.

        The winner comes first, then the others by accuracy: what one library leaves of a layer is another's loss.
        """
        others = [one for one in best if one.recipe != winner.recipe]
        rankings: dict[tuple[str, str], tuple[LayerCost, ...]] = {}
        for candidate in (winner, *sorted(others, key=lambda one: (-one.accuracy, one.error))):
            ranked_by = self.ranked_by(candidate)
            if ranked_by not in rankings:
                rankings[ranked_by] = self.rank(*ranked_by)
            ranking = rankings[ranked_by]
            count = self.fewest(ranking, candidate)
            if count is not None:
                return candidate, ranking, tuple(cost.layer for cost in ranking[:count])
        raise self.cannot_be_mended(winner, rankings[self.ranked_by(winner)], len(others))

    def ranked_by(self, candidate: Candidate) -> tuple[str, str]:
        """Recipe and calibration that rank a candidate's layers; OpenVINO's own format leaves it to ONNX Runtime's."""
        if self.recipes[candidate.recipe].suffix != ".onnx":
            return "ort-u8s7", METHODS[0]
        return candidate.recipe, candidate.method

    def rank(self, recipe: str, method: str) -> tuple[LayerCost, ...]:
        """What each layer costs."""
        quantizer: Quantizer = self.recipes.get(recipe) or make_quantizer(recipe, self.calibration)
        ranking = rank_layers(self.calibration, quantizer, method, self.open)
        return tuple(cost for cost in ranking if cost.layer not in self.kept)

    def fewest(self, ranking: tuple[LayerCost, ...], candidate: Candidate) -> int | None:
        """How many of the dearest layers have to stay in float for the limit to hold; None where no number helps."""

        def drop(kept: tuple[str, ...]) -> float:
            _, after = self.written(candidate.recipe, candidate.method, (*self.kept, *kept))
            return self.before.top1.value - after.top1.value

        assert self.settings.max_drop is not None
        return fewest_kept(ranking, drop, self.settings.max_drop)

    def cannot_be_mended(self, winner: Candidate, ranking: tuple[LayerCost, ...], others: int) -> VerificationError:
        """The error that tells of the most accurate recipe, since the others lose as much or more."""
        noun = "recipe" if others == 1 else "recipes"
        elsewhere = f", here or in the {others} other {noun}" if others else ""
        dearest = f"The dearest layer is {ranking[0].layer}.  " if ranking else ""
        return VerificationError(
            f"{winner.recipe} loses {self.before.top1.value - winner.accuracy:.2%} of accuracy, "
            f"{self.settings.max_drop:.2%} is allowed, and no share of layers in float makes up for it{elsewhere}.",
            f"{dearest}Use fp16 or bf16, allow more, or train with quantisation.",
        )

    def missed(self, accuracy: float) -> bool:
        """Has a file of this accuracy lost more than allowed?"""
        return self.settings.max_drop is not None and exceeds(self.before.top1.value - accuracy, self.settings.max_drop)

    def written(self, recipe: str, method: str, kept: tuple[str, ...]) -> tuple[Candidate, Accuracy]:
        """Write the file with these layers in float, unless it lies there; what it does."""
        path = self.path(recipe, method)
        if path not in self.lying or self.lying[path][0] != kept:
            self.recipes[recipe].write(path, method, kept)
            accuracy, logits = self.judge.accuracy(self.open(path))
            made = Candidate(recipe, method, accuracy.top1.value, relative_error(logits, self.exact))
            self.lying[path] = kept, made, accuracy
        return self.lying[path][1:]

    def path(self, recipe: str, method: str) -> Path:
        """Where a candidate lies."""
        return self.folder / f"{recipe}-{method}{self.recipes[recipe].suffix}"

    def open(self, path: Path) -> Session:
        """A candidate as a session of the scheme's backend."""
        return open_file(self.scheme, path, self.settings.threads)

    def ship(self, path: Path, output: Path) -> Path:
        """Check the winner's graph and put it in its place, with our metadata."""
        if path.suffix != ".onnx":
            if not has_quantized_layer(path):
                raise _nothing_quantized(path)
            for suffix in (".bin", path.suffix):
                with atomic_file(output.with_suffix(suffix)) as temporary:
                    shutil.copyfile(path.with_suffix(suffix), temporary)
            if output.suffix == ".onnx":
                output.unlink(missing_ok=True)  # of an earlier call, in which another recipe won
            return output.with_suffix(path.suffix)
        model = onnx.load(str(path))
        if not is_quantized(model):
            raise _nothing_quantized(path)
        if self.scheme.library_keeps:
            self.kept = (*self.kept, *(name for name in float_layers(model) if name not in self.kept))
        if self.scheme.tensorrt:
            require_tensorrt_graph(model, self.kept)
        shipped = precision.save_like(model, output, like=self.calibration.model, precision=self.scheme.precision)
        if self.scheme.backend == "openvino":  # another target's file under this name is no earlier one of this call
            _remove_earlier(output.with_suffix(SUFFIX), self.scheme.precision)
        return shipped


def _remove_earlier(own: Path, made: str) -> None:
    """Remove what an earlier call made under the same name in OpenVINO's format; a file of the user's own stays."""
    with contextlib.suppress(IekdError):  # not one of ours, or not to be read here
        if own.is_file() and read_entries(own).get("precision") == made:
            own.unlink()
            own.with_suffix(".bin").unlink()


def open_file(scheme: Scheme, path: Path, threads: int) -> Session:
    """A file of ``scheme`` as a session that computes as the target does; this processor may saturate."""
    if not scheme.timed:
        return ReferenceSession(path, threads=threads)
    return get_backend(scheme.backend).load(path, threads=threads)


def _nothing_quantized(path: Path) -> VerificationError:
    return VerificationError(
        f"{path.stem} left every layer of the network in float.", "Its layers may be too narrow; ship fp16."
    )
