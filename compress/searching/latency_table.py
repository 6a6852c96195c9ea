"""How long each candidate takes on the target, found before any of them is trained.

Weights do not change how long a network takes: it is exported, quantised and measured untrained.  Each figure is
measured once for a machine and kept in ``$XDG_CACHE_HOME/iekd-compress/latency``.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from iekd.compress.config import RunConfig
from iekd.compress.data import default_cache_dir
from iekd.compress.measure import open_session, threads
from iekd.compress.prune import prune
from iekd.compress.pruning.share import goal_of_share
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.searching.space import Candidate, identity_of
from iekd.compress.targets import TARGETS
from iekd.compress.variants import precisions_asked
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.export import sketch_onnx
from iekd.deploy.fingerprint import fingerprint
from iekd.errors import InputError, VerificationError
from iekd.files import write_json
from iekd.models.checkpoint import load_artefact
from iekd.models.registry import build, is_artefact, resolve

SECONDS = 0.3
"""Measured for each file: enough for a median that only sorts candidates out."""
IMAGES = 32

Entry = dict[str, Any]
"""``{"latency": {precision: milliseconds}}``, or ``{"refused": why}``."""


class LatencyTable:
    """Latencies of untrained candidates on this machine and target.

    Args:
        config: target, threads, precision and the settings of pruning.
        classes: of the data.
    """

    def __init__(self, config: RunConfig, classes: int) -> None:
        self.config, self.classes = config, classes
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
            if key not in kept:
                kept[key] = self._measure(candidate)
                self._add(key, kept[key])
            found[candidate] = kept[key]
            progress(number + 1, f"{candidate.name}: {describe(kept[key])}")
        return found

    def _key(self, candidate: Candidate) -> str:
        config = self.config
        how = f"prune={candidate.prune:g}/{config.prune_scope}/{TARGETS[config.target].round_to}"
        if candidate.prune and config.prune_goal != "macs":
            how += f"/{config.prune_goal}"
        precisions = "+".join(self._precisions())
        own = identity_of(candidate.student)
        return f"{candidate.student} {own} {how} size={candidate.size} classes={self.classes} {precisions}"

    def _precisions(self) -> tuple[str, ...]:
        """Those that are measured here; a board's files run there alone."""
        return () if TARGETS[self.config.target].on_board else precisions_asked(self.config)

    def _measure(self, candidate: Candidate) -> Entry:
        try:
            network = self._network(candidate)
            with tempfile.TemporaryDirectory(prefix="iekd-search-") as folder:
                return {"latency": self._latencies(network, candidate, Path(folder))}
        except (InputError, VerificationError) as error:
            return {"refused": error.message}

    def _network(self, candidate: Candidate) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if is_artefact(candidate.student):
                network = load_artefact(Path(candidate.student)).network
            else:
                network = build(resolve(candidate.student), self.classes, candidate.size)
            if not candidate.prune:
                return network.eval()
            cut = prune(
                network,
                image_size=candidate.size,
                goal=goal_of_share(self.config, candidate.prune, network, candidate.size, self.classes),
                scope=self.config.prune_scope,
                round_to=TARGETS[self.config.target].round_to,
            )
            return cut.network.eval()

    def _latencies(self, network: nn.Module, candidate: Candidate, folder: Path) -> dict[str, float]:
        random = np.random.default_rng(0)
        noise = random.standard_normal((IMAGES, 3, candidate.size, candidate.size)).astype(np.float32)
        labels = np.arange(IMAGES, dtype=np.int64) // 2 % 2
        source = folder / "fp32.onnx"
        sketch_onnx(network, source, candidate.size)
        files = {"fp32": source}
        for precision in self._precisions():
            settings = QuantizeSettings(
                calibration_images=IMAGES // 2,
                methods=("minmax",),
                max_drop=None,
                target=self.config.target,
                threads=threads(self.config),
                latency_seconds=SECONDS,
            )
            made = quantize(
                source,
                folder / f"{precision}.onnx",
                scheme=TARGETS[self.config.target].schemes[precision],
                images=noise[::2],
                labels=labels[::2],
                held_out=(noise[1::2], labels[1::2]),
                settings=settings,
            )
            files[precision] = made.file
        sessions = {precision: open_session(self.config, path) for precision, path in files.items()}
        try:
            run = measure_latency(sessions, noise, folder=folder, seconds=SECONDS)
        finally:
            for session in sessions.values():
                session.close()
        return {precision: run.latency[precision].median.value for precision in sessions}

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
    found = fingerprint(threads(config)).model_dump(exclude={"memory_gib", "os", "python", "gpu_clocks"})
    text = json.dumps([found, TARGETS[config.target].backend], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(entry: Entry) -> str:
    """An entry in a few words."""
    if "refused" in entry:
        return f"cannot be used: {entry['refused']}"
    return ", ".join(f"{precision} {value:.3g} ms" for precision, value in entry["latency"].items())
