"""Commands around the device: build, bundle, deploy, serve-config.  A thin layer, as ``cli.py`` is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from iekd.errors import EXIT_MISSED, InputError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Run")]
Sizes = Annotated[str | None, typer.Option(help="Smallest,usual,largest.")]


def add_commands(app: typer.Typer, out: Console) -> None:
    """Put the commands of this page into ``app``; what they tell goes to ``out``."""

    @app.command()
    def build(
        model: Annotated[Path, typer.Argument(help="ONNX file that a run wrote.")],
        precision: Annotated[str, typer.Option(help="fp32 (the file as it is), fp16, bf16, int8, fp8 or best.")] = (
            "fp32"
        ),
        target: Annotated[str, typer.Option(help="tensorrt: this machine's GPU.  Boards build their own.")] = (
            "tensorrt"
        ),
        data: Annotated[str | None, typer.Option(help="Images to calibrate on, as for the main job.")] = None,
        val_fraction: Annotated[float | None, typer.Option(help="As for the main job.")] = None,
        skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="As for the main job.")] = False,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Copy the engine and its manifest there.")
        ] = None,
        batch: Annotated[str, typer.Option(help="Smallest,usual,largest batch.")] = "1,1,8",
        height: Sizes = None,
        width: Sizes = None,
        workspace: Annotated[int | None, typer.Option(help="Scratch memory a layer, MiB.")] = None,
        tactic_memory: Annotated[int | None, typer.Option(help="Memory for trying out one kernel, MiB.")] = None,
        level: Annotated[int, typer.Option(min=0, max=5, help="Optimisation level; 5 searches longest.")] = 3,
        tf32: Annotated[bool, typer.Option(help="Let float32 layers multiply in TF32.")] = True,
        sparse: Annotated[bool, typer.Option(help="Use 2:4 sparse weights.")] = False,
        version_compatible: Annotated[bool, typer.Option(help="Loads in later TensorRT of this major version.")] = (
            False
        ),
        hardware_compatible: Annotated[
            bool, typer.Option(help="Loads on any GPU of SM 8.0 or later, on this platform.")
        ] = False,
        strip: Annotated[bool, typer.Option(help="Leave the weights out; loading refits them.")] = False,
        dla: Annotated[int | None, typer.Option(help="Deep Learning Accelerator, the GPU for the rest.")] = None,
        debug: Debug = False,
    ) -> None:
        """Build a TensorRT engine for this machine's GPU, out of the cache where it holds one."""
        from iekd.compress.engines import build_engines, check_target
        from iekd.deploy.device.inspector import describe, inspect_engine
        from iekd.deploy.engine import BuildSettings
        from iekd.deploy.openvino_format import refuse_openvino
        from iekd.files import refuse_output_file

        check_target(target)
        if output is not None:
            refuse_output_file(output, model)
        refuse_openvino(model, "TensorRT", "Give the run's ONNX file, such as RUN/student.onnx.")
        settings = BuildSettings(
            batch=_range("--batch", batch),
            height=None if height is None else _range("--height", height),
            width=None if width is None else _range("--width", width),
            workspace_mib=workspace,
            tactic_mib=tactic_memory,
            optimization_level=level,
            tf32=tf32,
            sparse=sparse,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            strip_plan=strip,
            dla_core=dla,
        )
        with out.status("building") as status:
            choices = build_engines(
                model,
                precision,
                settings,
                data=data,
                val_fraction=val_fraction,
                skip_bad_images=skip_bad_images,
                folder=model.parent,
                progress=lambda share, phase: status.update(f"building {share:.0%}  {phase}"),
                log=out.print if debug else None,
                tell=lambda line: out.print(line, highlight=False, markup=False, soft_wrap=True),
            )
        for choice in choices:
            if choice.median_ms is not None:
                out.print(f"  {choice.precision:5} {choice.accuracy:.2%} at {choice.median_ms:.3f} ms", highlight=False)
        best = choices[0].engine
        layers = describe(inspect_engine(best.path), dla=dla is not None)
        out.print(f"  {layers}", highlight=False, markup=False, soft_wrap=True)
        path = best.path if output is None else best.copy_to(output)
        out.print(f"[green]✓[/] {path}  {choices[0].precision}, layers in {best.layers}",
                  highlight=False, soft_wrap=True)  # fmt: skip

    @app.command()
    def bundle(
        run: Annotated[Path, typer.Argument(help="Run folder.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="The zip.")] = Path("student.bundle.zip"),
        images: Annotated[int, typer.Option(min=1, help="Validation images that travel, at most.")] = 300,
        debug: Debug = False,
    ) -> None:
        """Pack what a board needs to build, check and measure the student by itself."""
        from iekd.compress.board import bundle_run

        out.print(f"[green]✓[/] {output}  {bundle_run(run, output, images=images)}", highlight=False, soft_wrap=True)

    @app.command()
    def deploy(
        host: Annotated[str, typer.Argument(help="user@board, or a name of ~/.ssh/config.")],
        bundle: Annotated[Path, typer.Argument(help="What `bundle` wrote.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what comes back.")] = Path("board"),
        backend: Annotated[str, typer.Option(help="tensorrt or onnxruntime, on the board.")] = "tensorrt",
        seconds: Annotated[float, typer.Option(min=0.1, help="Measured seconds for each model.")] = 10.0,
        threads: Annotated[int | None, typer.Option(min=1, help="Of ONNX Runtime on the board.")] = None,
        energy: Annotated[bool, typer.Option(help="Measure power, in a pass of its own.")] = True,
        folder: Annotated[str, typer.Option(help="On the board, in the user's home or absolute.")] = "iekd-bundles",
        port: Annotated[int | None, typer.Option(help="Of the board's ssh.")] = None,
        identity: Annotated[Path | None, typer.Option(help="Private key.")] = None,
        option: Annotated[list[str] | None, typer.Option(help="Of ssh, such as ProxyJump=gate; repeatable.")] = None,
        run_option: Annotated[
            list[str] | None, typer.Option(help="Of run.py on the board, such as --max-batch=1; repeatable.")
        ] = None,
        python: Annotated[str, typer.Option(help="The board's Python.")] = "python3",
        debug: Debug = False,
    ) -> None:
        """Copy a bundle to a board over ssh, run it there and fetch what it measured."""
        from iekd.deploy.device_results import read_device_result
        from iekd.deploy.remote import deploy as run_there

        arguments = ["--backend", backend, "--seconds", f"{seconds:g}"]
        arguments += [] if threads is None else ["--threads", str(threads)]
        arguments += [] if energy else ["--no-energy"]
        arguments += run_option or ()
        result = run_there(
            host,
            bundle,
            output=output,
            port=port,
            identity=identity,
            options=tuple(option or ()),
            python=python,
            arguments=arguments,
            folder=folder,
            say=lambda line: out.print(line, highlight=False, markup=False, soft_wrap=True),
        )
        out.print(f"[green]✓[/] {result}  iekd-compress report RUN --add {result} shows it beside the host's.",
                  highlight=False, soft_wrap=True)  # fmt: skip
        if not read_device_result(result).verdict.kept:
            sys.exit(EXIT_MISSED)

    @app.command(name="serve-config")
    def serve_config(
        model: Annotated[Path, typer.Argument(help="ONNX file that a run wrote.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="The model repository.")] = Path("triton"),
        name: Annotated[str, typer.Option(help="Of the model.")] = "student",
        plan: Annotated[Path | None, typer.Option(help="TensorRT engine built from the same file.")] = None,
        max_batch: Annotated[int, typer.Option(min=1, help="Largest batch.")] = 8,
        instances: Annotated[int, typer.Option(min=1, help="Copies for each device.")] = 1,
        delay: Annotated[int | None, typer.Option(min=0, help="Wait this long for a fuller batch, µs.")] = None,
        debug: Debug = False,
    ) -> None:
        """Write a Triton model repository for the ONNX file and the engine."""
        from iekd.deploy.triton import server_command, write_repository

        place = write_repository(
            output, name, model, plan, max_batch=max_batch, instances=instances, dynamic_batching_us=delay
        )
        out.print(f"[green]✓[/] {place}  {server_command(place, plan)}", highlight=False, soft_wrap=True)


def _range(flag: str, text: str) -> tuple[int, int, int]:
    """``1,1,8``, or one number for all three."""
    parts = text.split(",")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise InputError(f"{flag} '{text}' is not smallest,usual,largest.", f"Write {flag} 1,1,8, or one number.")
    return (sizes[0], sizes[1], sizes[2])
