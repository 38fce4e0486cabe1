"""``agegen export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import app, make_notice_console, make_output_console, show_work


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Write float16 weights, and their model card."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Write the whole model as ONNX, its weights in float16.")
    ] = None,
    repeat: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Another run of the same command, for the card.")
    ] = None,
) -> None:
    """Write a run's model to files of its own: weights with their card, or ONNX for any runtime.

    The ONNX model takes aligned RGB crops, uint8 (N, size, size, 3), and gives age, spread (years) and p_female.

    Example: agegen export runs/scratch-20260101-120000 --onnx scratch.onnx
    """
    notices = make_notice_console()
    with show_work(notices, "exporting"):
        from agegen.export.export import ExportConfig, export_run
        from agegen.render.tables import format_size

        written = export_run(ExportConfig(run, weights, onnx, tuple(repeat or ())))
    output = make_output_console()
    for path in written:
        output.print(f"{path} ({format_size(path.stat().st_size)})", soft_wrap=True)
