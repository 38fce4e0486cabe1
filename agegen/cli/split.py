"""``agegen split``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import (
    AgeColumn,
    CropDetector,
    GenderCodes,
    Protocol,
    app,
    make_notice_console,
    make_output_console,
    show_work,
)


@app.command()
def split(
    path: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Folders in a known layout, tables of pictures, or 'demo'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.csv", help="Where the split goes.")] = Path(
        "split.csv"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Decides the split, as in training.")] = 0,
    protocol: Protocol = None,
    detector: CropDetector = None,
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
) -> None:
    """Write the leak-free split of a data set alone, with checksums, for others to use (--split-file).

    Example: agegen split data/utkface -o split.csv
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.manifests import ReadOptions
        from agegen.datatools.split import SplitConfig, write_data_split
        from agegen.render.progress import ProgressDisplay, show_exclusions, show_notices

    config = SplitConfig(tuple(path), out, seed, protocol, detector, ReadOptions(age_column, gender_codes))
    with ProgressDisplay(notices) as progress:
        result = write_data_split(config, progress)
    show_notices(notices, result.notices)
    show_exclusions(notices, list(result.excluded))
    counts = ", ".join(f"{count:,} {name}" for name, count in result.counts.items())
    output = make_output_console()
    output.print(f"{counts}; {result.doubles:,} faces share a group, {result.leaks:,} groups straddle parts")
    output.print(f"fingerprint {result.fingerprint}", soft_wrap=True)
    output.print(str(out), soft_wrap=True)
