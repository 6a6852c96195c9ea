"""Commands on files that exist: quantize and prune.  A thin layer, as ``cli.py`` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from iekd.errors import InputError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Run")]


def add_commands(app: typer.Typer, out: Console) -> None:
    """Put the commands of this page into ``app``; what they tell goes to ``out``."""

    @app.command()
    def quantize(
        model: Annotated[Path, typer.Argument(help="Float32 ONNX file that a run wrote.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
        data: Annotated[str, typer.Option(help="Images to calibrate on and judge by, as for the main job.")],
        val_fraction: Annotated[float | None, typer.Option(help="As for the main job.")] = None,
        skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="As for the main job.")] = False,
        precision: Annotated[str, typer.Option(help="int8, fp16, bf16 or fp8, as the target has it.")] = "int8",
        target: Annotated[str, typer.Option(help="What the file is for.")] = "cpu",
        max_drop: Annotated[float, typer.Option(min=0, max=1, help="Most accuracy lost; layers stay in float.")] = 0.01,
        calibration_images: Annotated[
            int | None, typer.Option(min=1, help="Training images to calibrate on.  Default: 256, or half of them.")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the choice of these images.")] = 0,
        debug: Debug = False,
    ) -> None:
        """Quantise a file as its target wants it; the best of several libraries' ways, on held-out training images.

        The accuracy that is told, of both files, is that on the validation images.
        """
        from iekd.compress.files import quantize_file

        with out.status("trying"):
            note = quantize_file(
                model,
                output,
                data=data,
                val_fraction=val_fraction,
                skip_bad_images=skip_bad_images,
                precision=precision,
                target=target,
                max_drop=max_drop,
                calibration_images=calibration_images,
                seed=seed,
            )
        out.print(f"[green]✓[/] {note}", highlight=False, soft_wrap=True)

    @app.command()
    def prune(
        artefact: Annotated[Path, typer.Argument(help="Folder that a run wrote, such as RUN/student.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned artefact.")],
        fewer_macs: Annotated[float | None, typer.Option(help="Share of the MACs to remove.")] = None,
        ratio: Annotated[float | None, typer.Option(help="Share of the channels to remove.")] = None,
        max_latency: Annotated[
            str | None,
            typer.Option(help="Prune until it takes this, such as 1.5ms, as a run for --target measures."),
        ] = None,
        criterion: Annotated[str, typer.Option(help="group-norm, magnitude or bn-scale.")] = "group-norm",
        scope: Annotated[str, typer.Option(help="uniform or global.")] = "uniform",
        round_to: Annotated[
            int | None, typer.Option(min=1, help="Widths become multiples of it.  Default: as --target likes.")
        ] = None,
        target: Annotated[str, typer.Option(help="What the network is for; its runtime measures.")] = "cpu",
        threads: Annotated[
            int | None, typer.Option(min=1, help="Threads to measure with.  Default: this machine's cores.")
        ] = None,
        debug: Debug = False,
    ) -> None:
        """Prune an artefact, without recovery: give it to --student to train it again under a teacher."""
        from iekd.compress.files import prune_file

        goals: dict[str, Any] = {"fewer_macs": fewer_macs, "ratio": ratio, "max_latency": max_latency}
        if sum(goal is not None for goal in goals.values()) != 1:
            raise InputError("one goal is needed.", "Give --fewer-macs, --ratio or --max-latency.")
        how: dict[str, Any] = {"criterion": criterion, "scope": scope, "round_to": round_to}
        note = prune_file(artefact, output, **goals, **how, target=target, threads=threads)
        out.print(f"[green]✓[/] {output}  {note}", highlight=False, soft_wrap=True)
