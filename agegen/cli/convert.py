"""``agegen data convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import AgeColumn, GenderCodes, data_app, make_notice_console, make_output_console, show_work


@data_app.command(name="convert")
def convert(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH… OUT", help="Data sets in known layouts; last, the file to write.")
    ],
    embed: Annotated[
        bool, typer.Option("--embed", help="Put the pictures into the Parquet file, in the Hugging Face form.")
    ] = False,
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
) -> None:
    """Write labelled data sets as one manifest, OUT.csv or OUT.parquet.

    Example: agegen data convert fairface utkface faces.parquet --embed
    """
    if len(paths) < 2:
        raise typer.BadParameter("give at least one data set and the file to write")
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.manifests import ReadOptions
        from agegen.datatools.convert import ConvertConfig, convert_data
        from agegen.render.progress import ProgressDisplay, show_exclusions

    *data, out = paths
    config = ConvertConfig(tuple(data), Path(out), embed, ReadOptions(age_column, gender_codes))
    with ProgressDisplay(notices) as progress:
        result = convert_data(config, progress)
    show_exclusions(notices, result.excluded)
    make_output_console().print(f"{result.rows:,} rows; {out}", soft_wrap=True)
