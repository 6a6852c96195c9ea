"""Our quantisation against each library's defaults: accuracy lost and latency, of the same trained students.

Each student has a folder of its own under --out; what is finished there is not done again.  Students are trained by the
project itself, all under one teacher, where --runs names no folder of trained runs (NAME/student.onnx and
NAME/student/).  Calibration and the choice between candidates see training images only; accuracy is that of the
validation images, through the files.  Latency is interleaved in one run for each backend, batch 1: `--until training`
and `--until libraries` stop before anything is timed, so that the rest can be run on a machine at rest; several
processes may train different students in one --out.

For each student and backend ours is compared with the smallest drop of any library and, apart from that, with the
lowest latency of any, be it that of a file which lost its accuracy: the last line holds the worst of each.  The lines
before it have the latency against those files alone that keep what is asked of ours, the smallest drop and 0.1 points,
and the files that the images show to be more accurate than ours by more than that: the best of five libraries is the
luckiest too, and each answers the same images as ours, so that the difference has a paired 95 % interval.
Where ours is not clearly faster than a library's file, the two are measured again in fresh processes (--processes), and
that ratio counts: within one process a session's luck with its memory can be worth a tenth.

    python benchmarks/quantisers.py [--students mobilenetv2_100 ...] [--runs FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from quantiser_libraries import made_by_libraries
from quantiser_table import OURS, points_behind, show

from iekd.compress.calibration import choose_images
from iekd.compress.config_input import make_config
from iekd.compress.data import load_data
from iekd.compress.observer import Observer
from iekd.compress.pipeline import run_stages
from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.deploy.accuracy import measure_accuracy
from iekd.deploy.backends import Array, get_backend
from iekd.deploy.benchmark import measure_latency
from iekd.deploy.export import read_metadata
from iekd.deploy.fingerprint import fingerprint
from iekd.deploy.repeat import Candidate, repeat_ratio
from iekd.errors import IekdError, RunFolderError
from iekd.files import write_json

STUDENTS = (
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "resnet18",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
)
EPOCHS = {"vit_tiny_patch16_224": 100}
"""Of students that the run's own number of epochs does not teach: a transformer has to learn from 1,438 images that
neighbours belong together.  After 16 epochs it knew 73.8 % of the digits where the convolutional students knew 99 %, at
a rate twice too high; after 100 at the present one it knows 99.2 %."""
SCHEMES = {"onnxruntime": "int8-x86-onnxruntime", "openvino": "int8-openvino"}
CLEARLY_FASTER = 0.9
ASKED_ANEW = ("students", "out", "until", "seconds", "processes")
"""Options that a finished result does not hang on, or not so that it would be another."""


class Images:
    """The data of one student, preprocessed as its file says."""

    def __init__(self, spec: str, run: Path, seed: int) -> None:
        data = load_data(spec)
        how = read_metadata(run / "student.onnx").preprocessing
        self.classes = data.classes
        parts = {}
        for name, source in (("train", data.train), ("val", data.val)):
            images = np.stack([how(source[index][0]) for index in range(len(source))])
            parts[name] = images, np.asarray(source.targets)
        self.val: tuple[Array, NDArray[np.int64]] = parts["val"]
        images, labels = parts["train"]
        held = np.random.default_rng(seed).permutation(len(images)) < len(images) // 4
        self.train: tuple[Array, NDArray[np.int64]] = images[~held], labels[~held]
        self.held_out: tuple[Array, NDArray[np.int64]] = images[held], labels[held]


def trained(student: str, arguments: argparse.Namespace) -> Path:
    """The student's run folder, trained now if need be; a run that was stopped goes on where it was."""
    if arguments.runs:
        return Path(arguments.runs) / student
    teacher = Path(arguments.out) / "teacher"
    with FileLock(Path(arguments.out) / "teacher.lock"):  # several processes may train students side by side
        train(arguments.teacher, student, arguments, teacher, until="teacher")
    folder = Path(arguments.out) / student / "run"
    train(str(teacher / "teacher"), student, arguments, folder, until="export")
    return folder


def train(teacher: str, student: str, arguments: argparse.Namespace, folder: Path, *, until: str) -> None:
    """The stages of a run up to ``until``; none of them is timed."""
    settings = {name: getattr(arguments, name) for name in ("data", "seed", "train_limit", "val_limit", "views")}
    epochs = arguments.epochs or EPOCHS.get(student)
    shared = {"teacher_epochs": arguments.teacher_epochs} if until == "teacher" else {"epochs": epochs}
    config = make_config(
        {
            "teacher": teacher,
            "student": arguments.teacher if until == "teacher" else student,  # one teacher, whoever asks for it first
            "image_size": arguments.size,
            "factor_epochs": arguments.factor_epochs,
            "out": str(folder),
            **settings,
            **shared,
        }
    )
    run_stages(config, config.teacher, config.student, config.data, Observer(), until=until)


def compare(student: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All files of one student, measured; no rows where ``--until`` stops before that."""
    folder = Path(arguments.out) / student
    finished = folder / "result.json"
    if finished.is_file():
        found = dict(json.loads(finished.read_text(encoding="utf-8")))
        require_same(finished, found, arguments)
        return confirmed(found, finished, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    run = trained(student, arguments)
    if arguments.until == "training":
        return {"rows": []}
    data = Images(arguments.data, run, arguments.seed)
    count = min(arguments.calibration_images, len(data.train[0]))
    calibration = choose_images(data.train[0], data.train[1], count=count, seed=arguments.seed)
    rivals, missing = made_by_libraries(run, folder, calibration)
    if arguments.until == "libraries":
        return {"rows": []}
    rows = [row for backend in SCHEMES for row in on_backend(backend, run, folder, rivals, data, arguments)]
    found = {
        "student": student,
        "rows": rows,
        "missing": missing,
        "made_under": made_under(arguments),
        "fingerprint": fingerprint(arguments.threads).model_dump(),
    }
    write_json(finished, found)
    return confirmed(found, finished, arguments)


def made_under(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a result hangs on."""
    return {name: value for name, value in vars(arguments).items() if name not in ASKED_ANEW}


def require_same(finished: Path, found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Raise RunFolderError where a finished result is of other settings than those asked for; an older one, which does
    not say, is taken with a line."""
    if "made_under" not in found:
        print(f"{finished}: made by an older version, which did not say under what settings; taken as it is.")
        return
    now, made = made_under(arguments), found["made_under"]
    differs = [f"{name} {made.get(name)}, now {now[name]}" for name in now if made.get(name) != now[name]]
    if differs:
        raise RunFolderError(
            f"{finished} was made under other settings: {'; '.join(differs)}.", "Give those, or another --out."
        )


def confirmed(found: dict[str, Any], finished: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure again, in fresh processes, where ours is not clearly faster; kept in the result."""
    folder = finished.parent
    close = [row for row in found["rows"] if row["file"] not in (OURS, "float32") and _close(row)]
    run = Path(arguments.runs) / found["student"] if arguments.runs else folder / "run"
    for row in close:
        if "repeated" not in row:
            data, scheme = Images(arguments.data, run, arguments.seed), SCHEMES[row["backend"]]
            mine = next(file for end in (".onnx", ".xml") if (file := folder / f"{scheme}{end}").is_file())
            library = folder / json.loads((folder / "libraries.json").read_text())["files"][row["file"]]
            ratio = repeat_ratio(
                Candidate(mine, row["backend"], arguments.threads),
                Candidate(library, row["backend"], arguments.threads),
                data.val[0][:64],
                folder=folder / f"{row['backend']}-{row['file']}",
                processes=arguments.processes,
                seconds=arguments.seconds,
            )
            row["repeated"] = ratio.ratio.model_dump()
            write_json(finished, found)
    return found


def _close(row: dict[str, Any]) -> bool:
    return bool(row["ours_over_it"]["value"] > CLEARLY_FASTER)


def on_backend(
    backend: str, run: Path, folder: Path, rivals: dict[str, Path], data: Images, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Make our file for one backend and measure it there with the libraries' and with the float32 file."""
    scheme = SCHEMES[backend]
    settings = QuantizeSettings(
        calibration_images=min(arguments.calibration_images, len(data.train[0])),
        seed=arguments.seed,
        max_drop=arguments.max_drop,
        threads=arguments.threads,
    )
    result = quantize(
        run / "student.onnx",
        folder / f"{scheme}.onnx",
        scheme=scheme,
        images=data.train[0],
        labels=data.train[1],
        held_out=data.held_out,
        settings=settings,
    )
    write_json(folder / f"{scheme}.json", result.to_json())
    how = f"{result.chosen.recipe}, {result.chosen.method}, {len(result.kept_float)} layers in float"
    readable = {name: file for name, file in rivals.items() if backend == "openvino" or file.suffix == ".onnx"}
    files = {"float32": run / "student.onnx", OURS: result.file, **readable}
    rows = measured(backend, files, data, folder, arguments)
    return [{**row, "how": how if row["file"] == OURS else ""} for row in rows]


def measured(
    backend: str, files: dict[str, Path], data: Images, folder: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Accuracy on the validation images and interleaved latency of each file."""
    sessions = {name: get_backend(backend).load(file, threads=arguments.threads) for name, file in files.items()}
    images, labels = data.val
    accuracy, right = {}, {}
    for name, session in sessions.items():
        batches = ((images[at : at + 1], labels[at : at + 1]) for at in range(len(images)))  # some files fix the batch
        found, right[name] = measure_accuracy(session, batches, data.classes)
        accuracy[name] = found.top1.value
    run = measure_latency(sessions, images[:64], folder=folder / backend, seconds=arguments.seconds)
    return [
        {
            "backend": backend,
            "file": name,
            "accuracy": accuracy[name],
            "drop_points": 100 * (accuracy["float32"] - accuracy[name]),
            "ours_behind_points": points_behind(right[OURS], right[name]).model_dump(),
            "latency_ms": run.latency[name].median.value,
            "over_float32": run.ratio(name, "float32").value,
            "ours_over_it": run.ratio(OURS, name).model_dump(),
        }
        for name in files
    ]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--students", nargs="+", default=list(STUDENTS))
    found.add_argument("--until", choices=("training", "libraries", "result"), default="result")
    found.add_argument("--runs", help="trained run folders, one a student, instead of training")
    found.add_argument("--out", default="runs/quantisers")
    found.add_argument("--data", default="digits")
    found.add_argument("--size", type=int, default=64)
    found.add_argument("--teacher", default="resnet50")
    found.add_argument("--epochs", type=int, help="of all students, instead of the run's own and of EPOCHS")
    found.add_argument("--teacher-epochs", type=int)
    found.add_argument("--factor-epochs", type=int, default=10)
    found.add_argument("--views", type=int, help="of the training images, that recur and are answered once")
    found.add_argument("--train-limit", type=int)
    found.add_argument("--val-limit", type=int)
    found.add_argument("--calibration-images", type=int, default=256)
    found.add_argument("--max-drop", type=float, default=0.01)
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--seconds", type=float, default=3.0, help="measured for each file")
    found.add_argument("--processes", type=int, default=5, help="fresh ones, where the two are close")
    found.add_argument("--seed", type=int, default=0)
    return found


def main() -> None:
    arguments = parser().parse_args()
    try:
        students = [compare(student, arguments) for student in arguments.students]
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if arguments.until != "result":
        return
    show(students)


if __name__ == "__main__":
    main()
