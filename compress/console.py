"""The command line's view of a running job: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from iekd.compress.observer import Observer
from iekd.deploy.results import Report

TITLES = {
    "plan": "Look at data and models",
    "teacher": "Train the teacher",
    "factors": "Learn the teacher's factors",
    "student": "Distil the student",
    "distill": "Distil the student",
    "prune": "Prune and recover",
    **{f"pruned{step}": f"Recover from pruning {step + 1}" for step in range(8)},
    "export": "Export and verify",
    "quantize": "Quantise",
    "engines": "Build engines",
    "latency table": "Measure latencies of untrained candidates",
    "benchmark": "Measure accuracy and latency",
    "report": "Write the report",
}


HEARTBEAT = 30.0
"""Seconds between two lines about one stage, where no bar moves."""
HIDDEN = ("lr", "clipped")
"""Figures of an epoch that the report's curves show and the terminal does not."""


class ConsoleObserver(Observer):
    """Progress bars by Rich.  Use as a context manager, so that the terminal is left as it was found."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int | None] = {}
        self._told = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ConsoleObserver:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage_started(self, name: str, total: int | None) -> None:
        """Show a bar."""
        self._tasks[name] = self._progress.add_task(TITLES.get(name, name), total=total, detail="")
        self._totals[name], self._told = total, time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"… {TITLES.get(name, name)}")

    def stage_advanced(self, name: str, done: int, detail: str) -> None:
        """Move the bar; where none does, say now and then how far it is."""
        if name in self._tasks:
            self._progress.update(self._tasks[name], completed=done, detail=detail)
        if not self.console.is_terminal and time.monotonic() - self._told >= HEARTBEAT:
            of = f" of {total}" if (total := self._totals.get(name)) else ""
            self._say(f"  {done}{of}: {escape(detail)}")

    def epoch_finished(self, name: str, epoch: int, figures: dict[str, float]) -> None:
        """Say how the epoch went, where no bar does."""
        if not self.console.is_terminal:
            text = "  ".join(f"{key} {value:.4g}" for key, value in figures.items() if key not in HIDDEN)
            self._say(f"  {name} epoch {epoch + 1}: {text}")

    def _say(self, line: str) -> None:
        self._told = time.monotonic()
        self.console.print(line, highlight=False, soft_wrap=True)

    def stage_finished(self, name: str, seconds: float, note: str, reused: bool) -> None:
        """Replace the bars of the stage by one line."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        time = "from the earlier run" if reused else f"{seconds:.1f} s"
        line = f"[green]✓[/] {TITLES.get(name, name)}  [dim]{time}[/]"
        self.console.print(f"{line}  {escape(note)}" if note else line, highlight=False)

    def note(self, text: str) -> None:
        """Print the line."""
        self.console.print(f"[yellow]![/] {escape(text)}", highlight=False)


def print_summary(console: Console, report: Report, folder: Path) -> None:
    """The final table, the verdict, and where everything is."""
    console.print()
    console.print(summary_table(report))
    console.print()
    mark = "[bold green]KEPT[/]" if report.verdict.kept else "[bold red]MISSED[/]"
    console.print(f"{mark}  {report.verdict.sentence}", highlight=False)
    for text in report.notes:
        console.print(f"[dim]note: {escape(text)}[/]", highlight=False)
    console.print(f"file    {folder / report.student.file}", highlight=False, soft_wrap=True)
    if engine := report.student.engine:
        console.print(f"engine  {folder / engine.file}  {engine.consists}", highlight=False, soft_wrap=True)
    console.print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


def summary_table(report: Report) -> Table:
    """Teacher and student side by side, and how they compare."""
    teacher, student, verdict = report.teacher, report.student, report.verdict
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("")
    for title in (teacher.name, student.name, ""):
        table.add_column(title, justify="right")
    pairs = [
        (
            "accuracy",
            [f"{m.accuracy.top1.value:.2%}" for m in (teacher, student)],
            f"{verdict.retained.value:.1%} kept",
        ),
        ("median", [f"{m.latency.median.value:.3f} ms" for m in (teacher, student)], f"{verdict.speedup.value:.1f} x"),
        ("p99", [f"{m.latency.p99.value:.3f} ms" for m in (teacher, student)], ""),
    ]
    for title, values, unit in (
        ("file", (teacher.size_bytes, student.size_bytes), "MB"),
        ("parameters", (teacher.parameters, student.parameters), "M"),
        ("MACs", (teacher.macs, student.macs), "M"),
    ):
        pairs.append((title, [f"{v / 1e6:.2f} {unit}" for v in values], f"{values[0] / max(1, values[1]):.1f} x less"))
    for title, cells, comparison in pairs:
        table.add_row(title, *cells, comparison)
    return table
