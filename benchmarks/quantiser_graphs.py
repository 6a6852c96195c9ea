"""What each library's graph of a trained student looks like beside ours, for x86 and for TensorRT; nothing is timed.

Takes what `quantisers.py --until libraries` left under --out and makes our two files by the recipe alone, no layer left
in float: the first recipe of the scheme that is for such a network where the machine at rest has not yet chosen one.
Accuracy on the validation images and the likeness of the logits to float32's (dB) are those of the unfused graph on
ONNX Runtime, as the project measures files for TensorRT.  Writes graphs.csv; prints a table and, for each graph that
the checks for TensorRT refuse, the first reason.

    python benchmarks/quantiser_graphs.py [--students mobilenetv2_100 ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import onnx
from quantisers import Images, parser

from iekd.compress.quantize import QuantizeSettings, quantize
from iekd.compress.quantizers import FOR_ATTENTION, SCHEMES, recipes_for
from iekd.compress.quantizers.judge import Judge
from iekd.compress.sensitivity import relative_error
from iekd.deploy.backends.reference import ReferenceSession
from iekd.deploy.graph_shape import GraphShape, graph_shape
from iekd.errors import InputError
from iekd.files import atomic_file

OURS = {"ours, TensorRT": "int8-tensorrt", "ours, x86": "int8-x86-onnxruntime"}
COLUMNS = (
    "accuracy",
    "dB",
    "Q / DQ",
    "activations",
    "zero points",
    "weights",
    "MACs in 8 bits",
    "before activation",
    "additions: one / both of all",
    "foreign",
    "TensorRT",
)


def our_files(folder: Path, data: Images, arguments: argparse.Namespace) -> dict[str, Path]:
    """Our file for x86 and for TensorRT; one that was measured, or made here before, is not made again."""
    return {name: _made(folder, scheme, data, arguments) for name, scheme in OURS.items()}


def _made(folder: Path, scheme: str, data: Images, arguments: argparse.Namespace) -> Path:
    source = folder / "run" / "student.onnx"
    measured, alone = folder / f"{scheme}.onnx", folder / f"{scheme}-alone.onnx"
    found = next((file for file in (measured, alone) if file.is_file()), None)
    if found is not None:
        return found
    able = recipes_for(SCHEMES[scheme], onnx.load(str(source)))
    settings = QuantizeSettings(
        calibration_images=min(arguments.calibration_images, len(data.train[0])),
        seed=arguments.seed,
        recipes=(next((name for name in able if name in FOR_ATTENTION), able[0]),),
        enforce=False,
        threads=arguments.threads,
        latency_seconds=0.1,  # of one recipe: decides nothing
    )
    quantize(
        source,
        alone,
        scheme=scheme,
        images=data.train[0],
        labels=data.train[1],
        held_out=data.held_out,
        settings=settings,
    )
    return alone


def rows_of(student: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each ONNX file of a student."""
    folder = Path(arguments.out) / student
    record = folder / "libraries.json"
    if not record.is_file():
        raise InputError(f"{folder} holds no libraries' files.", "Run quantisers.py --until libraries first.")
    run = folder / "run"
    data = Images(arguments.data, run, arguments.seed)
    made = json.loads(record.read_text(encoding="utf-8"))
    libraries = {name: folder / file for name, file in made["files"].items() if file.endswith(".onnx")}
    files = {"float32": run / "student.onnx", **our_files(folder, data, arguments), **libraries}
    judge = Judge(data.val)
    exact = judge.accuracy(ReferenceSession(files["float32"], threads=arguments.threads))[1]
    rows = []
    for name, file in files.items():
        accuracy, logits = judge.accuracy(ReferenceSession(file, threads=arguments.threads))
        likeness = -10 * math.log10(max(relative_error(logits, exact), 1e-12))
        row = {"student": student, "file": name, "accuracy": f"{accuracy.top1.value:.2%}"}
        row |= {"dB": "" if name == "float32" else f"{likeness:.1f}"}
        rows.append(row | _told(graph_shape(onnx.load(str(file)))))
    return rows


def _told(shape: GraphShape) -> dict[str, Any]:
    """The shape in words, by column; and the reasons of the checks."""
    if not shape.quantize + shape.dequantize:
        return dict.fromkeys(COLUMNS[2:], "") | {"problems": ()}
    return {
        "Q / DQ": f"{shape.quantize} / {shape.dequantize}",
        "activations": " and ".join(shape.activation_types),
        "zero points": "all 0" if shape.zero_points_are_zero else "not all 0",
        "weights": f"{' and '.join(shape.weight_types)}; {shape.per_channel} by channel, {shape.per_tensor} by tensor",
        "MACs in 8 bits": f"{shape.eight_bit_macs:.1%}",
        "before activation": shape.before_activation,
        "additions: one / both of all": f"{shape.additions_one} / {shape.additions_both} of {shape.additions}",
        "foreign": " ".join(shape.foreign) or "none",
        "TensorRT": f"refused ({len(shape.problems)})" if shape.problems else "accepted",
        "problems": shape.problems,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table in Markdown, then the first reason against each file that is refused, then the line of figures."""
    print(f"| student | file | {' | '.join(COLUMNS)} |")
    print(f"|---|---|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {row['student']} | {row['file']} | {' | '.join(str(row[name]) for name in COLUMNS)} |")
    for row in rows:
        if row["problems"]:
            print(f"{row['student']}, {row['file']}: {row['problems'][0]}")
    print(f"RESULT {accepted(rows)}")


def accepted(rows: list[dict[str, Any]]) -> str:
    """How many of each library's graphs, and of ours, the checks for TensorRT accept."""
    names = [name for name in dict.fromkeys(row["file"] for row in rows) if name != "float32"]
    told = []
    for name in names:
        verdicts = [row["TensorRT"] == "accepted" for row in rows if row["file"] == name]
        told.append(f"{name.replace(', ', '-')}={sum(verdicts)}/{len(verdicts)}")
    return f"accepted: {' '.join(told)}"


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """All columns, and all reasons, one row a file."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["student", "file", *COLUMNS, "problems"])
        writer.writeheader()
        writer.writerows({**row, "problems": "; ".join(row["problems"])} for row in rows)


def main() -> None:
    described = parser()
    described.description = __doc__
    arguments = described.parse_args()
    rows = [row for student in arguments.students for row in rows_of(student, arguments)]
    write_csv(rows, Path(arguments.out) / "graphs.csv")
    show(rows)


if __name__ == "__main__":
    main()
