"""TensorFlow data sets: ``tfds/NAME:ROOT``, prepared under ROOT before.

TensorFlow and PyTorch each bring an LLVM of their own, and a process that holds both may be aborted.  So the data is
read by another process (this file, run), through timm, and kept as lossless PNG.
"""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iekd.compress.datasets.hugging_face import find_columns, val_split
from iekd.compress.datasets.raw import RawData
from iekd.compress.datasets.streams import SpooledSource, spooled, spooled_labels
from iekd.errors import EnvironmentMissingError, InputError


def load_tensorflow(spec: str, name: str, root: str, cache_dir: Path) -> RawData:
    """The data set ``name`` that lies prepared under ``root``.

    Raises:
        InputError: it cannot be read.
        EnvironmentMissingError: a package is missing.
    """
    for package, module in (("tensorflow", "tensorflow"), ("tensorflow-datasets", "tensorflow_datasets")):
        if importlib.util.find_spec(module) is None:
            raise EnvironmentMissingError(f"data '{spec}' needs the package {package}.", f"pip install {package}")
    command = [sys.executable, "-m", __name__, spec, name, root, str(cache_dir)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise InputError(
            f"cannot read data '{spec}': {reason}",
            f"Prepare it first: tfds build {name} --data_dir={root or '~/tensorflow_datasets'}.",
        )
    found = json.loads(answer.stdout.splitlines()[-1])
    parts = [
        SpooledSource(Path(folder), np.array(spooled_labels(Path(folder)), dtype=np.int64), f"{spec}, {split}")
        for split, folder in found["folders"].items()
    ]
    count = max(int(part.targets.max(initial=0)) for part in parts) + 1
    classes = tuple(found["classes"] or (str(number) for number in range(count)))
    return RawData(spec, classes, parts[0], parts[1] if len(parts) > 1 else None)


def _read(spec: str, name: str, root: str, cache_dir: str) -> dict[str, Any]:
    """Spool the splits; tells the class names and, by split, where it lies now."""
    import tensorflow_datasets  # type: ignore[import-not-found,unused-ignore]
    from timm.data.dataset_factory import create_dataset  # before TensorFlow, or the two abort each other

    builder = tensorflow_datasets.builder(name, data_dir=root or None)
    image, label = find_columns(builder.info.features, spec)
    train = "train" if "train" in builder.info.splits else next(iter(builder.info.splits))
    splits = [split for split in (train, val_split(list(builder.info.splits), train)) if split]

    def rows(split: str) -> Iterator[tuple[bytes, int]]:
        data = create_dataset(f"tfds/{name}", root=root or None, split=split, input_key=image, target_key=label)
        for picture, target in data:
            stream = io.BytesIO()
            picture.save(stream, "PNG", compress_level=1)
            yield stream.getvalue(), int(target)

    version = str(builder.info.full_name)
    folders = {split: str(spooled(partial(rows, split), (spec, split, version), Path(cache_dir))) for split in splits}
    return {"classes": list(getattr(builder.info.features[label], "names", None) or ()), "folders": folders}


if __name__ == "__main__":
    print(json.dumps(_read(*sys.argv[1:5])))  # noqa: T201
