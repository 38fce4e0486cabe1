"""``agegen data crop``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import AgeColumn, GenderCodes, data_app, make_notice_console, make_output_console, show_work


@data_app.command(name="crop")
def crop(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Labelled photographs: a folder in a known layout, or a table.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the crops and their labels.csv.")],
    detector: Annotated[
        str,
        typer.Option(metavar="auto|mtcnn|yunet", help="What finds the faces; auto is yunet where its file is at hand."),
    ] = "auto",
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
) -> None:
    """Cut the largest face out of each labelled photograph, aligned as training and evaluation want it.

    Example: agegen data crop photos.csv crops/
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.manifests import ReadOptions
        from agegen.datatools.crop import CropConfig, crop_data
        from agegen.render.progress import ProgressDisplay, show_exclusions

    config = CropConfig((path,), out, detector, ReadOptions(age_column, gender_codes))
    with ProgressDisplay(notices) as progress:
        result = crop_data(config, progress)
    show_exclusions(notices, result.excluded)
    make_output_console().print(f"{result.crops:,} crops; {result.manifest}", soft_wrap=True)
