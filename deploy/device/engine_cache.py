"""Built engines on disk: a key of all that an engine depends on, a manifest beside each, one build at a time.

Beside ``NAME-KEY.engine`` lie ``.json``, the manifest, and ``.layers.json``, what the engine consists of.  The manifest
is written last and holds the engine's digest, so an engine without a fitting manifest does not count.  It is read
before an engine is handed to TensorRT: deserialising a foreign plan can end the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import DeviceError, DeviceInputError
from .manifest import sha256_of
from .trt_version import version_numbers

FORMAT = 2
"""1 told no platform."""
_ENGINE, _MANIFEST, _LAYERS, _LOG = ".engine", ".json", ".layers.json", ".log"


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to."""

    tensorrt: str
    gpu: str
    sm: str
    driver: str
    platform: str
    """Operating system and kind of processor, such as ``Linux aarch64``."""


@dataclass(frozen=True)
class Identity:
    """Everything that decides what an engine is."""

    onnx_sha256: str
    machine: Machine
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """16 hexadecimal digits."""
        return _digest_of(asdict(self))


@dataclass(frozen=True)
class Built:
    """What a build hands to the cache."""

    plan: bytes
    layers: str = ""
    """JSON of the engine inspector."""
    timing_cache: bytes = b""


@dataclass(frozen=True)
class Manifest:
    """What lies beside an engine."""

    identity: Identity
    engine_sha256: str
    engine_bytes: int
    onnx: str
    """Path of the ONNX file, of several alike the one given last; needed again where the plan is stripped."""
    seconds: float
    """That the build took."""
    built: str
    """When, UTC."""

    @classmethod
    def read(cls, engine: Path) -> Manifest:
        """The manifest beside an engine.

        Raises:
            DeviceInputError: none, or not one of ours.
        """
        path = engine.with_suffix(_MANIFEST)
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if (found := entries.pop("format")) != FORMAT:
                raise ValueError(f"it has format {found}, and this program knows {FORMAT}")
            identity = entries.pop("identity")
            machine = Machine(**identity.pop("machine"))
            return cls(identity=Identity(machine=machine, **identity), **entries)
        except FileNotFoundError as error:
            raise DeviceInputError(
                f"{engine} has no manifest ({path.name}), so nothing says which device it is for.",
                "Build it on this device, from the ONNX file.",
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise DeviceInputError(
                f"the manifest {path} cannot be read: {error}.", "Build the engine again from the ONNX file."
            ) from error

    def write(self, engine: Path) -> None:
        """Put the manifest beside the engine."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"
        write_whole(engine.with_suffix(_MANIFEST), text.encode())


def check_engine(engine: Path, here: Machine) -> Manifest:
    """The manifest of an engine that may be loaded on this machine.

    Raises:
        DeviceInputError: missing, damaged, or built for another GPU, platform or TensorRT.
    """
    if not engine.is_file():
        raise DeviceInputError(f"no engine at {engine}.", "Check the path.")
    manifest = Manifest.read(engine)
    there, options = manifest.identity.machine, manifest.identity.options
    rebuild = "Build it on this device, from the ONNX file."
    if not options.get("hardware_compatible") and (there.gpu, there.sm) != (here.gpu, here.sm):
        raise DeviceInputError(
            f"{engine} was built for {there.gpu} (SM {there.sm}); this is {here.gpu} (SM {here.sm}).", rebuild
        )
    if options.get("hardware_compatible") and version_numbers(here.sm) < (8, 0):
        raise DeviceInputError(f"{engine} needs a GPU of SM 8.0 or later; this has {here.sm}.", rebuild)
    if there.platform != here.platform:
        raise DeviceInputError(f"{engine} was built on {there.platform}; this is {here.platform}.", rebuild)
    old, new = version_numbers(there.tensorrt), version_numbers(here.tensorrt)
    served = options.get("version_compatible") and old[0] == new[0] and old < new
    if there.tensorrt != here.tensorrt and not served:
        raise DeviceInputError(f"{engine} was built by TensorRT {there.tensorrt}; this is {here.tensorrt}.", rebuild)
    if engine.stat().st_size != manifest.engine_bytes or sha256_of(engine) != manifest.engine_sha256:
        raise DeviceInputError(f"{engine} is not the file that its manifest describes.", rebuild)
    return manifest


def cached_engine(
    cache: Path,
    onnx: Path,
    identity: Identity,
    build: Callable[[bytes], Built],
    *,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Path of the engine in the cache; built unless a valid one is there.  Safe for several processes at once.

    Args:
        cache: folder; made where it is missing.
        onnx: the file; its name becomes part of the engine's.
        identity: what the engine depends on.
        build: given the timing cache so far (empty at first), returns the engine.
        log: told what is reused, waited for or rebuilt.

    Raises:
        DeviceError: the folder cannot be written, or the disk is full.
    """
    say = log or (lambda _line: None)
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    engine = cache / f"{onnx.stem}-{identity.key}{_ENGINE}"
    if not _why_not(engine, identity):
        return _reused(engine, onnx, say, "is in the cache.")
    with _build_lock(cache, say):
        reason = _why_not(engine, identity)  # another process may have built it meanwhile
        if not reason:
            return _reused(engine, onnx, say, "was built by another process.")
        say(f"[I] building {engine.name}: {reason}")
        with _writing(cache):
            _remove_leftovers(cache)
            engine.with_suffix(_MANIFEST).unlink(missing_ok=True)
        _build(cache, engine, onnx, identity, build)
    return engine


def _reused(engine: Path, onnx: Path, say: Callable[[str], None], why: str) -> Path:
    """Let the manifest name the file given now: that of the build, with a stripped plan's weights, may be gone."""
    say(f"[I] {engine.name} {why}")
    manifest, here = Manifest.read(engine), str(onnx.resolve())
    if manifest.onnx != here:
        try:
            replace(manifest, onnx=here).write(engine)
        except DeviceError as error:  # as in a cache that can only be read; the engine itself is good
            say(f"[W] {engine.name} still names {manifest.onnx}: {error.message}")
    return engine


def _build(cache: Path, engine: Path, onnx: Path, identity: Identity, build: Callable[[bytes], Built]) -> None:
    # A driver update changes what is fastest, hence the whole machine is in the timing cache's name.
    timing = cache / f"timing-{_digest_of(asdict(identity.machine))}.cache"
    begun = time.monotonic()
    built = build(timing.read_bytes() if timing.is_file() else b"")
    seconds = time.monotonic() - begun
    if built.timing_cache:
        write_whole(timing, built.timing_cache)
    write_whole(engine, built.plan)
    if built.layers:
        write_whole(engine.with_suffix(_LAYERS), built.layers.encode())
    Manifest(
        identity=identity,
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        engine_bytes=len(built.plan),
        onnx=str(onnx.resolve()),
        seconds=round(seconds, 3),
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    ).write(engine)


def _why_not(engine: Path, identity: Identity) -> str:
    """Why the engine in the cache cannot be used; empty when it can."""
    try:
        if not engine.is_file():
            return "there is none yet."
        found = check_engine(engine, identity.machine)
    except DeviceError as error:
        return error.message
    except OSError as error:
        return f"it cannot be read ({error.strerror})."
    return "" if found.identity == identity else "its manifest describes another."


@contextlib.contextmanager
def _build_lock(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One build at a time: two would falsify each other's timings, and a board's memory may not hold both.

    The kernel drops the lock with the process, so a killed build leaves none behind.
    """
    with _writing(cache):
        lock = open(cache / "build.lock", "a", encoding="utf-8")  # noqa: SIM115 - closed below
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("[I] waiting for another process that builds.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_leftovers(cache: Path) -> None:
    """Delete what killed builds left half-written; the caller holds the lock, so nobody else is writing an engine."""
    for leftover in cache.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either whole or absent, even when the power fails.

    Raises:
        DeviceError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path.parent):
        try:
            with open(temporary, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says what is wrong where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise DeviceError(
            f"the engine cache {folder} cannot be written: {error.strerror or error}.",
            "Free some space there, or choose another folder: on a board by run.py's --output, elsewhere by the "
            "environment variable XDG_CACHE_HOME.",
        ) from error


def onnx_sha256(onnx: Path) -> str:
    """Hexadecimal SHA-256 of an ONNX file and of the weights beside it (``NAME.onnx.data``, ``NAME.onnx_data``)."""
    digest = hashlib.sha256()
    _feed(digest, onnx)
    for weights in (onnx.with_name(f"{onnx.name}.data"), onnx.with_name(f"{onnx.name}_data")):
        if weights.is_file():
            _feed(digest, weights)
    return digest.hexdigest()


def _feed(digest: Any, path: Path) -> None:
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
