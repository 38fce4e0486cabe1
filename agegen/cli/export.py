"""``agegen export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agegen.cli.app import SHARE, add_command, make_notice_console, make_output_console, show_work
from agegen.errors import AgegenError, format_count
from agegen.options import Int8Part
from agegen.render.tables import PlainTable, format_size, render_table

if TYPE_CHECKING:
    from agegen.export.export import Int8Result, MetricChange

_INT8 = "Int8"
# What the metrics are called in the table.
_NAMES = {
    "mae": "MAE (years)",
    "in_bracket": "in the bracket",
    "accuracy": "gender accuracy",
    "coverage": "ages in their 90 % interval",
}


@add_command("export", "agegen export runs/scratch-20260101-120000 --onnx scratch.onnx", SHARE)
def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A finished run; for ONNX also a .safetensors file or a bundled model."),
    ],
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
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="ONNX in int8: smaller and faster, calibrated and verified on the run's faces.",
            rich_help_panel=_INT8,
        ),
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Faces for --int8, as for train (repeatable). Default: the run's.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    exclude: Annotated[
        list[Int8Part] | None,
        typer.Option(
            help="Keep in float32: the first layer, or the heads (repeatable); if int8 costs accuracy.",
            rich_help_panel=_INT8,
        ),
    ] = None,
) -> None:
    """Export a trained model to standalone files: weights or ONNX.

    The ONNX model takes aligned RGB crops, uint8 (N, size, size, 3), and returns age, spread (years) and p_female; see
    `agegen help onnx`.
    """
    if (data or exclude) and not int8:
        raise AgegenError("--data and --exclude require --int8")
    notices = make_notice_console()
    with show_work(notices, "exporting"):
        from agegen.export.export import Int8Options, export_int8, export_run
        from agegen.render.progress import ProgressDisplay

    if int8:
        options = Int8Options(tuple(data or ()), tuple(exclude or ()))
        with ProgressDisplay(notices) as progress:
            written, result = export_int8(run, onnx, options, weights, tuple(repeat or ()), progress)
        _show_result(result)
    else:
        with show_work(notices, "exporting"):
            written = export_run(run, weights, onnx, tuple(repeat or ()))
    output = make_output_console()
    for path in written:
        output.print(f"{path} ({format_size(path.stat().st_size)})", soft_wrap=True)


def _show_result(result: Int8Result) -> None:
    """Print how int8 changes the estimates."""
    from agegen.render.progress import show_notices

    notices = make_notice_console()
    show_notices(notices, result.notices)
    rows = [_list_cells(change) for change in result.changes]
    caption = f"activations measured on {format_count(result.calibration_faces, 'face')}; ± is 95 %, measured in pairs"
    columns = ["metric", "faces", "fp32", "int8", "change", "accepted loss"]
    notices.print(render_table(PlainTable("", columns, rows, caption=caption)))


def _list_cells(change: MetricChange) -> list[str]:
    """Return a metric in float32 and in int8, with its change and the bounds of that."""
    unit, scale, digits = ("", 1, 3) if change.name == "mae" else (" %", 100, 2)
    values = (f"{scale * value:.{digits}f}{unit}" for value in (change.fp32, change.int8))
    difference, error = scale * (change.int8 - change.fp32), 1.96 * scale * change.error
    limit = "–" if change.limit is None else f"{scale * change.limit:g}"
    return [_NAMES[change.name], f"{change.faces:,}", *values, f"{difference:+.{digits}f} ± {error:.{digits}f}", limit]
