"""Which precision wins on this board, and does it keep the limits?"""

from __future__ import annotations

from typing import Any

from .contents import Limits


def misses(model: dict[str, Any], limits: Limits) -> list[str]:
    """One sentence for each limit that ``model`` misses; the measured value decides, not the end of its interval."""
    found = []
    accuracy, median = model["accuracy"]["value"], model["latency"]["median"]["value"]
    if limits.min_accuracy is not None and accuracy < limits.min_accuracy:
        found.append(f"accuracy {accuracy:.2%}; at least {limits.min_accuracy:.2%} was asked for")
    if limits.max_latency_ms is not None and median > limits.max_latency_ms:
        found.append(f"median {median:.3g} ms; at most {limits.max_latency_ms:.3g} ms was asked for")
    return found


def judge(models: list[dict[str, Any]]) -> dict[str, Any]:
    """``kept``, ``winner`` (the fastest that misses nothing) and ``sentence`` over all measured models."""
    keeping = [model for model in models if not model["misses"]]
    if not keeping:
        reasons = "; ".join(f"{model['precision']}: {', '.join(model['misses'])}" for model in models)
        return {"kept": False, "winner": None, "sentence": f"No precision keeps the limits.  {reasons}."}
    best = min(keeping, key=lambda model: float(model["latency"]["median"]["value"]))
    accuracy, median = best["accuracy"], best["latency"]["median"]["value"]
    sentence = (
        f"{best['precision']} is the fastest that keeps the limits: {accuracy['value']:.2%} right "
        f"({accuracy['correct']} of {accuracy['total']}), median {median:.3g} ms."
    )
    return {"kept": True, "winner": best["precision"], "sentence": sentence}


def table(models: list[dict[str, Any]], host: dict[str, Any]) -> list[str]:
    """The models as lines of plain text, the host's figures beside the board's."""
    rows = [("precision", "accuracy", "95 %", "host", "median ms", "p99 ms", "host ms", "mJ/inference")]
    for model in models:
        there = host.get("models", {}).get(model["precision"], {})
        accuracy, latency, energy = model["accuracy"], model["latency"], model["energy"]
        rows.append(
            (
                model["precision"],
                f"{accuracy['value']:.2%}",
                f"{accuracy['low']:.1%} to {accuracy['high']:.1%}",
                _shown(there.get("accuracy"), "{:.2%}"),
                f"{latency['median']['value']:.3f}",
                f"{latency['p99']['value']:.3f}",
                _shown(there.get("median_ms"), "{:.3f}"),
                _shown(energy and 1e3 * energy["joules_per_inference"], "{:.2f}"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
