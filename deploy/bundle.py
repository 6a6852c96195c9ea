"""The bundle: one zip with all that a board needs to build, check and measure the models by itself.

The zip holds one folder: ``run.py`` and the package ``device/``, the ONNX files by precision, a few hundred validation
images, class names, preprocessing, limits, the host's figures, and a manifest with the SHA-256 of every file.  The same
input gives the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iekd.deploy import device
from iekd.deploy.device.manifest import MANIFEST, make_manifest
from iekd.deploy.export import ModelMetadata, read_metadata
from iekd.deploy.openvino_format import refuse_openvino
from iekd.errors import InputError
from iekd.files import atomic_file
from iekd.models.preprocessing import Preprocessing

LAUNCHER = '''"""python3 run.py [--backend tensorrt|onnxruntime] [--seconds S], or python3 run.py predict IMAGE..."""
import sys

if sys.version_info < (3, 10):
    sys.stderr.write("error: this needs Python 3.10 or later; JetPack 6 and later bring it.\\n")
    raise SystemExit(3)
try:
    import numpy
except ImportError:
    sys.stderr.write("error: this needs numpy.  sudo apt-get install python3-numpy\\n")
    raise SystemExit(3)

from device.run import main

raise SystemExit(main())
'''
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every entry: the earliest that zip can say."""


def write_bundle(
    output: Path,
    models: Mapping[str, Path],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    min_accuracy: float | None = None,
    max_latency_ms: float | None = None,
    host: Mapping[str, Any] | None = None,
) -> Path:
    """Write the bundle, atomically.

    Args:
        output: the zip.
        models: ONNX file by precision (fp32, fp16, int8, ...), each exported by :func:`iekd.deploy.export.export_onnx`
            or with its metadata.
        images: validation images after :meth:`Preprocessing.fit`, (N, size, size, 3), RGB; the board normalises them.
        labels: class index of each image, (N,).
        classes: names in the order of the logits; None: as the files say.
        preprocessing: None: as the files say.
        min_accuracy: least share of ``images`` that the board must get right, 0..1; None for no limit.  Where the limit
            is a share of the teacher's accuracy, take the teacher's on these very images.
        max_latency_ms: most median latency on the board; None for no limit.
        host: ``{"device": NAME, "models": {PRECISION: {"accuracy": A, "median_ms": M}}}``, to compare with.

    Raises:
        InputError: a model is missing or disagrees with the others, or the images are not what the models take.
    """
    about = _agreed(models, classes, preprocessing)
    _check_images(images, labels, about)
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise InputError(f"min_accuracy {min_accuracy} is not a share.", "Give 0..1, or None.")
    contents = {
        "run.py": LAUNCHER.encode(),
        **{f"device/{path.name}": path.read_bytes() for path in device_sources()},
        **{f"models/{_precision(name)}.onnx": path.read_bytes() for name, path in models.items()},
        "images.npz": _archive(images=np.ascontiguousarray(images), labels=labels.astype(np.int64)),
        "classes.json": _json(list(about.classes)),
        "preprocessing.json": _json(json.loads(about.preprocessing.to_json())),
        "limits.json": _json({"min_accuracy": min_accuracy, "max_latency_ms": max_latency_ms}),
        "host.json": _json(_host(host or {})),
    }
    contents[MANIFEST] = _json(make_manifest(about.name, contents))
    with atomic_file(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(contents.items()):
            _add(archive, f"{_slug(about.name)}-bundle/{name}", content)
    return output


def device_sources() -> list[Path]:
    """The modules that travel to the board."""
    return sorted(Path(device.__file__).parent.glob("*.py"))


def _agreed(
    models: Mapping[str, Path], classes: Sequence[str] | None, preprocessing: Preprocessing | None
) -> ModelMetadata:
    """What all the models say of themselves, which must be the same and what the caller says."""
    if not models:
        raise InputError("a bundle needs at least one model.", "Give the ONNX file of each precision.")
    for path in models.values():
        refuse_openvino(path, "a board", "Give the ONNX file of that precision, or leave it out.")
    told = {name: read_metadata(path) for name, path in models.items()}
    first, about = next(iter(told.items()))
    expected = ModelMetadata(
        about.name, about.classes if classes is None else tuple(classes), preprocessing or about.preprocessing
    )
    for name, other in told.items():
        if (other.classes, other.preprocessing) != (expected.classes, expected.preprocessing):
            rest = first if name != first else "what was asked for"
            raise InputError(
                f"{models[name]} ({name}) has other classes or another preprocessing than {rest}.",
                "Export all precisions from one model.",
            )
    return expected


def _check_images(images: NDArray[np.uint8], labels: NDArray[np.int64], about: ModelMetadata) -> None:
    size = about.preprocessing.size
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3) or not len(images):
        raise InputError(
            f"the images are {images.dtype} {images.shape}; the models take uint8 (N, {size}, {size}, 3).",
            "Resize and crop them with Preprocessing.fit.",
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= len(about.classes):
        raise InputError(
            f"{len(images)} images need as many labels of 0 to {len(about.classes) - 1}.", "Check the data set."
        )


def _precision(name: str) -> str:
    if not name or _slug(name) != name:
        raise InputError(f"'{name}' cannot be the name of a precision.", "Use letters and digits: fp32, fp16, int8.")
    return name


def _host(host: Mapping[str, Any]) -> dict[str, Any]:
    models = {
        precision: {"accuracy": float(figures["accuracy"]), "median_ms": float(figures["median_ms"])}
        for precision, figures in host.get("models", {}).items()
    }
    return {"device": str(host.get("device", "")), "models": models}


def _archive(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the names for allow_pickle
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    archive.writestr(entry, content)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
