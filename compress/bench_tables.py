"""What ``iekd-compress bench`` prints: one table for each kind of figure."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from iekd.deploy.benchmark import PARTS, LatencyRun
from iekd.deploy.repeat import MULTI_STREAM_SAMPLES
from iekd.deploy.results import Accuracy, Latency, Publishable, RepeatedRatio, Throughput


def latency_table(accuracy: dict[str, Accuracy], run: LatencyRun, folder: Path) -> Table:
    """Accuracy and latency of each file, and its ratio to the first."""
    table = _empty("accuracy", "median ms", "95 %", "p99", "calls", "against the first")
    first = next(iter(accuracy))
    for name, found in accuracy.items():
        latency = run.latency[name]
        ratio = run.ratio(first, name)
        table.add_row(
            name,
            f"{found.top1.value:.2%}",
            f"{latency.median.value:.3f}",
            f"{latency.median.low:.3f} - {latency.median.high:.3f}",
            f"{latency.p99.value:.3f}",
            str(latency.iterations),
            "" if name == first else f"{ratio.value:.2f} x [{ratio.low:.2f}, {ratio.high:.2f}]",
        )
    table.caption = f"raw traces and bench.json in {folder}"
    return table


def parts_tables(latency: dict[str, Latency]) -> list[Table]:
    """Where the time of a call went, for the sessions that tell; none where none does."""
    told = {name: found for name, found in latency.items() if found.parts}
    if not told:
        return []
    table = _empty(*(f"{part} ms" for part in PARTS), "whole call ms")
    for name, found in told.items():
        medians = [f"{found.parts[part].median.value:.3f}" if part in found.parts else "-" for part in PARTS]
        table.add_row(name, *medians, f"{found.median.value:.3f}")
    table.caption = "medians of the parts of a call: to the device, computing, from the device, enqueueing"
    return [table]


def throughput_table(measured: dict[str, Throughput]) -> Table:
    """Images a second, requests overlapping."""
    table = _empty("images/s", "95 %", "streams", "batch")
    for name, found in measured.items():
        rate = found.images_per_second
        interval = f"{rate.low:.1f} - {rate.high:.1f}"
        table.add_row(name, f"{rate.value:.1f}", interval, str(found.streams), str(found.batch))
    table.caption = "throughput: requests overlap, so these are no latencies"
    return table


def publishable_table(measured: dict[str, Publishable], seconds: float) -> Table:
    """MLPerf's two long figures."""
    table = _empty("single stream p90, ms", f"multi-stream of {MULTI_STREAM_SAMPLES} p99, ms", "seconds each")
    for name, found in measured.items():
        single, several = found.single_stream.p90.value, found.multi_stream.p99.value
        table.add_row(name, f"{single:.3f}", f"{several:.3f}", f"{seconds:g}")
    return table


def repeated_table(title: str, found: RepeatedRatio, processes: int) -> Table:
    """The ratio of two files over fresh processes."""
    table = _empty("ratio of medians", "95 % over processes", "processes")
    ratio = found.ratio
    table.add_row(title, f"{ratio.value:.2f} x", f"{ratio.low:.2f} - {ratio.high:.2f}", str(processes))
    table.caption = "; ".join(found.warnings) or None
    return table


def _empty(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    return table
