"""``agegen export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import SHARE, add_command, make_notice_console, make_output_console, show_work
from agegen.options import FinishedRunArgument


@add_command("export", "agegen export runs/scratch-20260101-120000 --onnx scratch.onnx", SHARE)
def export(
    run: FinishedRunArgument,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Write float16 weights and their model card."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Write the whole model as ONNX, with float16 weights.")
    ] = None,
    repeat: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Another run of the same command, for the card (repeatable)."),
    ] = None,
) -> None:
    """Export a trained model to standalone files: weights or ONNX.

    The ONNX model takes aligned RGB crops, uint8 (N, size, size, 3), and returns age, spread (years) and p_female; see
    `agegen help onnx`.
    """
    notices = make_notice_console()
    with show_work(notices, "exporting"):
        from agegen.export.export import export_run
        from agegen.render.tables import format_size

        written = export_run(run, weights, onnx, tuple(repeat or ()))
    output = make_output_console()
    for path in written:
        output.print(f"{path} ({format_size(path.stat().st_size)})", soft_wrap=True)
