"""The command line: a thin layer over the Python functions.  Nothing heavy is imported until a job starts."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from iekd import __version__
from iekd.compress import device_commands, file_commands
from iekd.compress.host_threads import waiting_threads_sleep
from iekd.compress.interruption import Commands, Output
from iekd.compress.search_command import add_search, run_search, search_instead
from iekd.compress.settings_options import ConfigFile, Debug, given_settings, quiet_libraries, with_settings
from iekd.compress.which_job import announce_search, students_to_search, with_accuracy_limit
from iekd.errors import EXIT_DEFECT, EXIT_ENVIRONMENT, EXIT_MISSED, IekdError, InputError

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    invoke_without_command=True,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
out = Output(quiet=os.environ.get("RANK", "0") != "0")  # of several processes one speaks
err = Output(stderr=True)


def main() -> None:
    """Entry point of ``iekd-compress``: domain errors become one line and an exit code here and nowhere else."""
    debug = "--debug" in sys.argv
    try:
        app()
    except IekdError as error:
        if debug:
            traceback.print_exc()
        err.print(
            f"[bold red]error:[/] {_escaped(error.message)}  {_escaped(error.hint)}".rstrip(),
            soft_wrap=True,
            highlight=False,
        )
        sys.exit(error.exit_code)
    except Exception:  # an exit status of 1 would pass for a verdict
        traceback.print_exc()
        err.print("this is a defect of iekd-compress; what was finished is kept.", highlight=False)
        sys.exit(EXIT_DEFECT)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


Version = Annotated[bool, typer.Option("--version", help="Show the version.", rich_help_panel="Run")]


@app.callback(invoke_without_command=True)
@with_settings
def compress(
    context: typer.Context,
    config_file: ConfigFile = None,
    debug: Debug = False,
    version: Version = False,
    **settings: Any,
) -> None:
    """Distil a TEACHER into a compact STUDENT, export both, measure both, and report what was kept and gained.

    With --max-latency and a STUDENT that stands for several networks (a short name, a list, a pattern) it is a search
    among them, as the command search; a network named exactly is trained, and judged by the limits.

    A command that was stopped goes on where it was when it is given again.  Exit status: 0 limits kept, 1 missed,
    2 bad input, 3 a part of the environment is missing, 4 a file failed its check, 70 a defect, 130 interrupted.
    """
    if version:
        out.print(f"iekd-compress {__version__}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        if any(value is not None for value in settings.values()):
            raise _misplaced(context.invoked_subcommand, settings)
        return
    waiting_threads_sleep()
    given = given_settings(settings, config_file)
    with quiet_libraries():
        students = students_to_search(given)
    if students:
        out.print(_escaped(announce_search(given["student"], students)), highlight=False, soft_wrap=True)
        raise typer.Exit(run_search(out, with_accuracy_limit(given)))
    report = _run(given, until="report")
    if report.verdict.kept:
        raise typer.Exit
    if instead := search_instead(given, report):
        out.print(
            f"A student that keeps the limits is looked for by\n  {_escaped(instead)}", highlight=False, soft_wrap=True
        )
    raise typer.Exit(EXIT_MISSED)


@app.command()
@with_settings
def teacher(config_file: ConfigFile = None, debug: Debug = False, **settings: Any) -> None:
    """Train the teacher only, into the run folder."""
    waiting_threads_sleep()
    _run(given_settings(settings, config_file), until="teacher")


@app.command()
@with_settings
def distill(config_file: ConfigFile = None, debug: Debug = False, **settings: Any) -> None:
    """Train teacher and student, without exporting."""
    waiting_threads_sleep()
    _run(given_settings(settings, config_file), until="distill")


@app.command()
def export(
    artefact: Annotated[Path, typer.Argument(help="Folder that a run wrote, such as RUN/student.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file.")] = Path("model.onnx"),
    debug: Debug = False,
) -> None:
    """Export an artefact to ONNX, with class names and preprocessing inside, verified against PyTorch."""
    from iekd.compress.tools import export_artefact

    with quiet_libraries():
        note = export_artefact(artefact, output)
    out.print(f"[green]✓[/] {output}  {note}", highlight=False)


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX or .xml files, measured interleaved, or a run folder.")],
    data: Annotated[
        str | None,
        typer.Option(help="Images to run on, and to judge accuracy by.", show_default="the run's, or digits"),
    ] = None,
    val_fraction: Annotated[float | None, typer.Option(help="As for the main job.")] = None,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="As for the main job.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured seconds for each file.")] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime, openvino, tensorrt, ...; a wrong one lists them.",
            show_default="the run's, or onnxruntime",
        ),
    ] = None,
    streams: Annotated[int, typer.Option(min=0, help="Throughput too, with so many requests in flight.")] = 0,
    repeat: Annotated[int, typer.Option(min=0, help="Repeat the ratio of two files in fresh processes.")] = 0,
    publishable: Annotated[float, typer.Option(min=0, help="MLPerf's two figures, seconds each; 600 counts.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for traces and bench.json.", show_default="bench")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure accuracy and latency of files that carry their preprocessing; an .xml wants --backend openvino.

    A run folder stands for its teacher and the file that ships.
    """
    from iekd.compress.bench import Modes, bench_files

    for table in bench_files(
        files,
        data=data,
        val_fraction=val_fraction,
        skip_bad_images=skip_bad_images,
        batch=batch,
        seconds=seconds,
        threads=threads,
        backend=backend,
        output=output,
        modes=Modes(streams, repeat, publishable),
    ):
        out.print(table)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="ONNX or .xml file that a run wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    debug: Debug = False,
) -> None:
    """Classify images with an exported file and nothing else."""
    from iekd.deploy.predict import predict as classify

    for image, name, share in classify(model, images):
        typer.echo(f"{image}\t{name}\t{share:.3f}")  # Rich would turn the tabs into spaces


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    add: Annotated[Path | None, typer.Option(help="A board's result.json, to stand beside the host's.")] = None,
    name: Annotated[str | None, typer.Option(help="With --add: keep it under this name, not the board's.")] = None,
    debug: Debug = False,
) -> None:
    """Draw report.html again from a run's report.json, with what a board measured."""
    from iekd.deploy.report import read_report, write_report

    if add is not None:
        from iekd.deploy.device_rows import add_device_result

        out.print(f"[green]✓[/] {add_device_result(run, add, name=name)}", highlight=False, soft_wrap=True)
    elif name is not None:
        raise InputError("--name names the result of a board.", "Give that result too: --add result.json.")

    found = read_report(run / "report.json" if run.is_dir() else run)
    out.print(
        f"[green]✓[/] {write_report(found, run if run.is_dir() else run.parent)}", highlight=False, soft_wrap=True
    )


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    images: Annotated[int, typer.Option(min=8, help="Validation images to measure on.")] = 1000,
    noise: Annotated[str, typer.Option(help="Standard deviations of the weight noise, as shares of each tensor's.")] = (
        "0.05,0.1,0.2,0.3"
    ),
    seeds: Annotated[int, typer.Option(min=2, help="Noises at each of them.")] = 5,
    against: Annotated[Path | None, typer.Option(help="A second run, put under the same noise.")] = None,
    debug: Debug = False,
) -> None:
    """Say what a run's student learned: likeness to the teacher by part, active channels, steadiness under noise."""
    from iekd.compress.diagnose import diagnose as examine_run
    from iekd.compress.diagnose import parse_levels
    from iekd.compress.diagnostics.summary import diagnosis_table

    with quiet_libraries():
        found = examine_run(run, images=images, noise=parse_levels(noise), seeds=seeds, against=against)
    out.print(diagnosis_table(found), soft_wrap=True)


@app.command()
def models(
    pattern: Annotated[str | None, typer.Argument(help="Search timm's names, such as 'resnet*'.")] = None,
    debug: Debug = False,
) -> None:
    """List the short names, or search timm's."""
    from iekd.compress.listings import aliases_table, timm_names

    if pattern is None:
        out.print(aliases_table())
    else:
        for name in timm_names(pattern):
            out.print(name, highlight=False)


@app.command()
def objectives(debug: Debug = False) -> None:
    """List what a student can be trained with."""
    from iekd.compress.listings import objectives_table

    out.print(objectives_table())


@app.command()
def doctor(debug: Debug = False) -> None:
    """Say what this machine can do, and what each missing part needs; exit status 3 where no job could run."""
    from iekd.compress.listings import doctor_table
    from iekd.deploy.doctor import examine, healthy

    findings = examine()
    out.print(doctor_table(findings))
    raise typer.Exit(0 if healthy(findings) else EXIT_ENVIRONMENT)


device_commands.add_commands(app, out)
file_commands.add_commands(app, out)


def _run(given: dict[str, Any], *, until: str) -> Any:
    from iekd.compress.config_input import make_config

    config = make_config(given)
    from iekd.compress.console import ConsoleObserver, print_summary

    out.print(f"[bold]iekd-compress[/] {config.teacher} → {config.student} on {config.data}", highlight=False)
    with ConsoleObserver(out) as observer, quiet_libraries():
        from iekd.compress.pipeline import run_stages

        found = run_stages(config, config.teacher, config.student, config.data, observer, until=until)
    if found is not None:
        print_summary(out, found, config.folder)
    return found


def _misplaced(command: str, settings: dict[str, Any]) -> IekdError:
    flags = ", ".join("--" + key.replace("_", "-") for key, value in settings.items() if value is not None)
    return InputError(f"{flags} stands before '{command}'.", f"Write options after the subcommand: {command} {flags}")


add_search(app, out)

if __name__ == "__main__":
    main()
