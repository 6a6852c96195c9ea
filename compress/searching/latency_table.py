"""How long each candidate takes on the target, found before any of them is trained.

Weights do not change how long a network takes: it is exported, quantised and measured untrained.  Each figure is
measured once for a machine and kept in ``$XDG_CACHE_HOME/iekd-compress/latency``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.data import default_cache_dir
from iekd.compress.measure import open_session, threads
from iekd.compress.one_measurement import one_measurement
from iekd.compress.precisions import precisions_asked
from iekd.compress.prune import prune
from iekd.compress.pruning.share import goal_of_share
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.quantizers import SCHEMES
from iekd.compress.searching.space import Candidate, identity_of
from iekd.compress.targets import TARGETS
from iekd.compress.variants import unreachable
from iekd.deploy.backends import Array, Session
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.conditions import warnings_of
from iekd.deploy.export import export_onnx, sketch_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.errors import IekdError, InputError, VerificationError
from iekd.files import write_json
from iekd.models.checkpoint import load_artefact
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import build, check_classes, is_artefact, resolve

SECONDS = 0.3
"""Measured for each file: enough for a median that only sorts candidates out."""
IMAGES = 32

RULES = 2
"""To be raised where figures are taken otherwise than before: those of earlier rules are measured again."""

Entry = dict[str, Any]
"""``{"latency": {precision: milliseconds}, "recipes": {precision: fastest recipe}}``, with ``"left_out": {precision:
why}`` where one cannot be had, and ``"busy": True`` where the machine did other work; or ``{"refused": why}``."""


class _LeftOutError(Exception):
    """One precision of a network cannot be had; its message says why."""


class LatencyTable:
    """Latencies of untrained candidates on this machine and target.

    Args:
        config: target, threads, precision and the settings of pruning.
        classes: of the data.
        note: is told, in a line, when another measurement on this machine is waited for.
    """

    def __init__(self, config: RunConfig, classes: int, note: Callable[[str], None] = lambda _: None) -> None:
        self.config, self.classes = config, classes
        self.note = functools.cache(note)  # once: beside another worker it would be every second candidate
        self.machine = machine_key(config)
        self.path = default_cache_dir() / "latency" / f"{config.target}-{self.machine}.json"

    def look_up(
        self, candidates: Sequence[Candidate], progress: Callable[[int, str], None] = lambda _done, _text: None
    ) -> dict[Candidate, Entry]:
        """The entry of each candidate; those that the file lacks are measured and written to it one by one.

        Args:
            candidates: to look up.
            progress: told how many are done, and what the last one took.
        """
        kept, found = self._read(), {}
        for number, candidate in enumerate(candidates):
            key = self._key(candidate)
            found[candidate] = kept[key] if self._stands(kept.get(key)) else self._measured_alone(key, candidate)
            progress(number + 1, f"{candidate.name}: {describe(found[candidate])}")
        if busy := sum("busy" in entry for entry in found.values()):
            self.note(
                f"{busy} of {len(found)} latencies that rule candidates out were measured while this machine did other "
                f"work; delete {self.path} to have them measured again."
            )
        return found

    def _measured_alone(self, key: str, candidate: Candidate) -> Entry:
        """A new entry, measured while nothing else of ours is; or what another worker has found in the meantime."""
        with one_measurement(self.note):
            entry = self._read().get(key)
            if entry is not None and self._stands(entry):
                return entry
            entry = self._measure(candidate)
            self._add(key, entry)
            return entry

    def _stands(self, entry: Entry | None) -> bool:
        """Is it kept?  What the clock refused may go otherwise next time."""
        return entry is not None and not ("refused" in entry and self.config.prune_goal == "latency")

    def _key(self, candidate: Candidate) -> str:
        config = self.config
        how = f"prune={candidate.prune:g}/{config.prune_scope}/{config.round_to}"
        if candidate.prune and config.prune_goal != "macs":
            how += f"/{config.prune_goal}"
        precisions = "+".join(self._precisions())
        own = identity_of(candidate.student)
        what = f"{candidate.student} {own} {how} size={candidate.size} classes={self.classes} {precisions}"
        return f"{what} rules={RULES}"

    def _precisions(self) -> tuple[str, ...]:
        """Those that are measured here: a board's files run there alone, and this GPU may lack some."""
        if TARGETS[self.config.target].on_board:
            return ()
        return tuple(name for name in precisions_asked(self.config) if not unreachable(self.config, name))

    def _measure(self, candidate: Candidate) -> Entry:
        try:
            network = self._network(candidate)
            recipes = self._recipes_of_whole(candidate)
            with tempfile.TemporaryDirectory(prefix="iekd-search-") as folder:
                return self._measured(network, candidate.size, Path(folder), recipes)
        except (InputError, VerificationError) as error:
            return {"refused": error.message}

    def _network(self, candidate: Candidate) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if is_artefact(candidate.student):
                network = load_artefact(Path(candidate.student)).network
                check_classes(network, candidate.student, self.classes, candidate.size)
            else:
                network = build(resolve(candidate.student), self.classes, candidate.size)
            if not candidate.prune:
                return network.eval()
            cut = prune(
                network,
                image_size=candidate.size,
                goal=goal_of_share(self.config, candidate.prune, network, candidate.size, self.classes),
                scope=self.config.prune_scope,
                round_to=self.config.round_to,
            )
            return cut.network.eval()

    def _recipes_of_whole(self, candidate: Candidate) -> dict[str, str]:
        """By precision, the recipe that is fastest for the network before it is pruned, if it was measured.

        It is taken for its pruned shapes too: comparing all of them for each would be most of the table's time.  Files
        that are trained choose anew among all.
        """
        whole: Entry = self._read().get(self._key(replace(candidate, prune=0.0)), {}) if candidate.prune else {}
        recipes: dict[str, str] = whole.get("recipes", {})
        return {name: recipe for name, recipe in recipes.items() if recipe in self._scheme_recipes(name)}

    def _scheme_recipes(self, precision: str) -> tuple[str, ...]:
        scheme = SCHEMES.get(TARGETS[self.config.target].schemes.get(precision, ""))
        return scheme.recipes if scheme else ()

    def _measured(self, network: nn.Module, size: int, folder: Path, recipes: dict[str, str]) -> Entry:
        noise = np.random.default_rng(0).standard_normal((IMAGES, 3, size, size)).astype(np.float32)
        source = folder / "fp32.onnx"
        if TARGETS[self.config.target].runs_engines:  # takes minutes anyway, and a sketch's casts may be refused
            export_onnx(network, source, preprocessing=Preprocessing(size=size), classes=(), name="candidate")
        else:
            sketch_onnx(network, source, size)
        left_out: dict[str, str] = {}
        fastest: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            sessions = {"fp32": stack.enter_context(contextlib.closing(open_session(self.config, source)))}
            for precision in self._precisions():
                try:
                    session, fastest[precision] = self._in_precision(precision, source, noise, recipes.get(precision))
                except _LeftOutError as error:
                    left_out[precision] = str(error)
                    continue
                sessions[precision] = stack.enter_context(contextlib.closing(session))
            run = measure_latency(sessions, noise, folder=folder, seconds=SECONDS)
        latency = {precision: run.latency[precision].median.value for precision in sessions}
        conditions = [found.conditions for found in run.latency.values() if found.conditions is not None]
        busy = any(warnings_of(found) for found in conditions)
        entry = {"latency": latency, "recipes": fastest, "left_out": left_out, "busy": busy}
        return {key: value for key, value in entry.items() if value}

    def _in_precision(self, precision: str, source: Path, noise: Array, recipe: str | None) -> tuple[Session, str]:
        """The file in another precision, opened, and its recipe: ``recipe``, or where that is None the fastest of all.

        Raises:
            _LeftOutError: a run would leave the precision out, and go on with the others.
            IekdError: a run would end.
        """
        labels = np.arange(IMAGES // 2, dtype=np.int64) % 2
        never = np.full(IMAGES // 2, -1)  # no file answers so: all are equally accurate, and the fastest recipe counts
        settings = QuantizeSettings(
            calibration_images=IMAGES // 2,
            methods=("minmax",),
            recipes=(recipe,) if recipe else (),
            max_drop=None,
            target=self.config.target,
            threads=threads(self.config),
            latency_seconds=SECONDS,
        )
        try:
            made = quantize(
                source,
                source.with_name(f"{precision}.onnx"),
                scheme=TARGETS[self.config.target].schemes[precision],
                images=noise[::2],
                labels=labels,
                held_out=(noise[1::2], never),
                settings=settings,
            )
        except VerificationError as error:
            if self.config.precision != "best":
                raise
            raise _LeftOutError(error.message) from error
        try:
            return open_session(self.config, made.file), made.chosen.recipe
        except IekdError as error:
            if not TARGETS[self.config.target].runs_engines:
                raise
            raise _LeftOutError(error.message) from error

    def _read(self) -> dict[str, Entry]:
        try:
            found: dict[str, Entry] = json.loads(self.path.read_text(encoding="utf-8"))["entries"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} is damaged ({error}).", "Delete it: it is measured again.") from error
        return found

    def _add(self, key: str, entry: Entry) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            entries = {**self._read(), key: entry}
            machine = fingerprint(threads(self.config)).model_dump()
            write_json(self.path, {"fingerprint": machine, "entries": entries})


def machine_key(config: RunConfig) -> str:
    """Sixteen hexadecimal digits of what latencies on a target hang on: machine, threads, runtimes."""
    text = json.dumps([_machine(config), TARGETS[config.target].backend], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def machine_parts(config: RunConfig) -> dict[str, Any]:
    """What :func:`machine_key` is made of, so that what differs can be named: ``packages timm`` and so on."""
    found: dict[str, Any] = {}
    for name, value in _machine(config).items():
        found |= {f"{name} {part}": own for part, own in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _machine(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = fingerprint(threads(config)).model_dump(
        exclude={"memory_gib", "os", "python", "gpu_clocks"}
    )
    return found


def describe(entry: Entry) -> str:
    """An entry in a few words."""
    if "refused" in entry:
        return f"cannot be used: {entry['refused']}"
    figures = [f"{precision} {value:.3g} ms" for precision, value in entry["latency"].items()]
    return ", ".join([*figures, *(f"no {precision}" for precision in entry.get("left_out", ()))])
