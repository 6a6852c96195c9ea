"""A classifier in each precision, and what must hold of the engine that is built of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from quantization_samples import CLASSES, Residual, images, write

from iekd.compress.quantize import CASTS, QuantizeSettings, quantize
from iekd.compress.targets import TARGETS
from iekd.deploy.backends import Array, Session, get_backend, logits_of
from iekd.deploy.backends.reference import ReferenceSession
from iekd.deploy.device.inspector import inspect_engine
from iekd.deploy.engine import BuildSettings, build
from iekd.deploy.precision import open_emulated

PRECISIONS = tuple(TARGETS["tensorrt"].schemes)
SETTINGS = BuildSettings(batch=(1, 8, 8), tf32=False)
WIDTH = 64
"""Of the classifier: modelopt leaves narrow layers in float."""
SEEN, UNSEEN = 256, 128
ALLOWED = {"fp16": 0.01, "bf16": 0.04, "int8": 0.08, "fp8": 0.08}
"""Of the largest logit: some rounding steps of each type, for an engine rounds in other places than ONNX Runtime.  What
is computed wrongly is off by the order of the logits themselves."""
AGREE = 0.97


def sample(count: int, seed: int = 1) -> tuple[Array, np.ndarray]:
    """Random images around one pattern for each class, and their classes."""
    labels = np.random.default_rng(seed).integers(0, len(CLASSES), count)
    return images(len(CLASSES), seed=0)[labels] + 0.5 * images(count, seed), labels


def classifier(path: Path) -> Path:
    """A float32 file that was trained to tell them apart, for a second."""

    @torch.enable_grad()
    def train(network: Residual) -> None:
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for step in range(30):
            seen, labels = sample(64, seed=100 + step)
            loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(seen)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return write(path, train, width=WIDTH)


def convert(source: Path, precision: str, folder: Path) -> Path:
    """The file in another precision by the project's own schemes, calibrated and judged on random images.

    Raises:
        EnvironmentMissingError: the precision's library is not installed.
    """
    seen, labels = sample(SEEN)
    return quantize(
        source,
        folder / f"{source.stem}-{precision}.onnx",
        scheme=TARGETS["tensorrt"].schemes[precision],
        images=seen[::2],
        labels=labels[::2],
        held_out=(seen[1::2], labels[1::2]),
        settings=QuantizeSettings(calibration_images=64, methods=("minmax",), max_drop=None, threads=1),
    ).file


def reference(file: Path, precision: str) -> Session:
    """The same file on ONNX Runtime, rounded as a device rounds."""
    return open_emulated(file, threads=1) if precision in CASTS else ReferenceSession(file, threads=1)


def answers(session: Session) -> Array:
    """Logits of images that nothing was calibrated on."""
    return logits_of(session, sample(UNSEEN, seed=2)[0])


def require_alike(found: Array, expected: Array, precision: str) -> None:
    """Assert that two sessions computed the same, up to the precision's rounding."""
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert difference < ALLOWED[precision], f"{precision}: off by {difference:.3f} of the largest logit"
    alike = float((found.argmax(1) == expected.argmax(1)).mean())
    assert alike >= AGREE, f"{precision}: the same class for {alike:.1%}"


def require_engine(file: Path, precision: str, cache: Path) -> None:
    """Build the engine of ``file`` here; it must compute what the file says, in its precision and as one CUDA graph."""
    engine = build(file, SETTINGS, cache=cache).path
    layers = inspect_engine(engine)
    assert layers.get("layers", 0) > 0, layers
    if layers["precisions"]:  # an engine with an open batch may leave them untold
        assert precision in layers["precisions"], layers["precisions"]
    session, other = get_backend("tensorrt").load(engine), reference(file, precision)
    try:
        require_alike(answers(session), answers(other), precision)
        assert session.describe()["cuda graph"] == "captured"
    finally:
        session.close()
        other.close()
