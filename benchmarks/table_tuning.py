r"""One budget of tuning for every method of the table: three weights each, on images that no result is reported on.

    table="python benchmarks/cifar10_table.py --data folder:cifar10 --recipe short"
    $table --out runs/table --seeds 0 --rows kd                               # trains the teacher, too
    mkdir -p runs/tuning && cp -r runs/table/teacher runs/tuning
    $table --out runs/tuning --held-out 5000 --epochs 4 --seeds 9 --rows $(python benchmarks/table_tuning.py candidates)
    $table --out runs/table --seeds 0 1 2 --rows $(python benchmarks/table_tuning.py chosen runs/tuning)

The weight that is tuned is that of what the method's name says.  A transfer is tried at a tenth of its default (the
authors of IE-KD gave its inheritance a tenth), at that and at three times it, with the lift as without; a term on
logits at a third, once and three times.  A row of two methods takes what each of them chose alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

from cifar10_table import TRANSFERS

from iekd.compress.objectives.catalogue import OBJECTIVES
from iekd.errors import IekdError, RunFolderError

OF_TRANSFERS, OF_LOGITS = (0.1, 1.0, 3.0), (1 / 3, 1.0, 3.0)
"""Of the default, which for lifted transfers is the plain form's."""
LOGITS = ("kd", "dkd", "dist")
LIFTED = tuple(f"ie-{name}" for name in TRANSFERS)
METHODS = (*LOGITS, *TRANSFERS, *LIFTED, "dml", "ie-dml")
JOINED = tuple((name, "kd") for name in (*TRANSFERS, *LIFTED))


def settings_of(method: str) -> list[str]:
    """The settings that a method is tried at, as a row of the table has them behind its name."""
    plain = "ft" if method == "ie-dml" else method.removeprefix("ie-")  # which ie-dml lifts
    if plain in TRANSFERS:
        name = "inherit_weight" if method.startswith("ie-") else "transfer_weight"
        usual, scales = OBJECTIVES[plain].defaults["transfer_weight"], OF_TRANSFERS
    else:
        name = "kd_weight"
        usual, scales = OBJECTIVES[plain].defaults[name], OF_LOGITS
    return [f"{name}={scale * usual:.4g}" for scale in scales]


def candidates() -> list[str]:
    """The rows to be trained, the same number for every method."""
    return [f"{method}@{settings}" for method in METHODS for settings in settings_of(method)]


def choose(folder: Path) -> dict[str, tuple[str, list[float]]]:
    """What every method does best at, and its accuracies in the order of :func:`settings_of`, in per cent.

    Raises:
        RunFolderError: a row is missing, or was judged on the images that results are reported on.
    """
    chosen = {}
    for method in METHODS:
        tried = settings_of(method)
        scores = [held_out_accuracy(folder, f"{method}@{settings}") for settings in tried]
        chosen[method] = tried[scores.index(max(scores))], scores
    return chosen


def held_out_accuracy(folder: Path, row: str) -> float:
    """Mean over the seeds that there are.

    Raises:
        RunFolderError: see :func:`choose`.
    """
    found = [json.loads(file.read_text()) for file in (folder / "rows").glob("*.json")]
    own = [entry for entry in found if entry["row"] == row]
    if not own:
        raise RunFolderError(f"{folder} has no row {row}.", "Train all that `table_tuning.py candidates` names.")
    if not all(entry["made_under"].get("held_out") for entry in own):
        raise RunFolderError(f"{row} in {folder} was judged on the test images.", "Train it with --held-out 5000.")
    return mean(float(entry["top1"]) for entry in own)


def rows(chosen: dict[str, tuple[str, list[float]]]) -> list[str]:
    """The table's rows, each method at what it chose."""
    found = ["ce"]
    for parts in (*((method,) for method in METHODS), *JOINED):
        changed = [settings for method in parts if not is_default(method, settings := chosen[method][0])]
        found.append("+".join(parts) + ("@" + ",".join(changed) if changed else ""))
    return found


def is_default(method: str, settings: str) -> bool:
    """Is this what the bare name stands for?"""
    name, _, value = settings.partition("=")
    return float(f"{OBJECTIVES[method].defaults[name]:.4g}") == float(value)


def render(chosen: dict[str, tuple[str, list[float]]]) -> str:
    """A Markdown table."""
    lines = ["| method | weight | held-out top-1, % |", "|---|---|---|"]
    for method, (best, scores) in chosen.items():
        name = best.partition("=")[0]
        values = [settings.partition("=")[2] for settings in settings_of(method)]
        told = [
            f"**{score:.2f}**" if f"{name}={value}" == best else f"{score:.2f}"
            for value, score in zip(values, scores, strict=True)
        ]
        lines.append(f"| `{method}` | {name.removesuffix('_weight')} {', '.join(values)} | {', '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("candidates", "chosen"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the tuning, for `chosen`")
    given = parser.parse_args()
    if given.what == "candidates":
        print(" ".join(candidates()))
        return
    if given.folder is None:
        parser.error("chosen needs the folder of the tuning")
    try:
        chosen = choose(given.folder)
    except IekdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(render(chosen), file=sys.stderr)
    print(" ".join(rows(chosen)))


if __name__ == "__main__":
    main()
