"""``agegen calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import (
    AgeColumn,
    CacheDir,
    CropDetector,
    Device,
    GenderCodes,
    Weights,
    app,
    make_notice_console,
    make_output_console,
    show_work,
)


@app.command()
def calibrate(
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="Labelled faces of your own, from about 50; may be given again.")
    ],
    run: Annotated[Path | None, typer.Argument(help="A run folder or checkpoint. Default: shipped weights.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The weights that ship for this model. Default: compact.")
    ] = None,
    weights: Weights = None,
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="Where the calibrated copy goes.")] = Path(
        "calibrated.safetensors"
    ),
    detector: CropDetector = None,
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
    device: Device = "auto",
    cache_dir: CacheDir = None,
) -> None:
    """Fit a model's intervals, and from when on it names a gender, to labelled faces of your own.

    The weights stay as they are; `agegen predict --run FILE.safetensors` takes the copy.

    Example: agegen calibrate --data my-faces.csv --out mine.safetensors
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.manifests import ReadOptions
        from agegen.evaluate.calibrate import CalibrateConfig, calibrate_model
        from agegen.model.weights import DEFAULT_MODEL
        from agegen.render.progress import ProgressDisplay, show_notices

    named = DEFAULT_MODEL if run is None and model is None else model
    reading = ReadOptions(age_column, gender_codes)
    config = CalibrateConfig(tuple(data), out, run, named, weights, detector, device, cache_dir, reading)
    with ProgressDisplay(notices) as progress:
        result = calibrate_model(config, progress)
    show_notices(notices, result.notices)
    output = make_output_console()
    before = "" if result.before != result.before else f"; before, they held {result.before:.1%} of these faces"
    low, high = result.sure
    output.print(
        f"90 % intervals fitted to {result.faces:,} faces ({result.calibration.basis}){before}. Of further faces like "
        f"these they hold {low:.0%} to {high:.0%}, with 95 % certainty.",
        soft_wrap=True,
    )
    output.print(f"gender is named from a probability of {result.calibration.min_confidence:.2f} on", soft_wrap=True)
    for path in result.written:
        output.print(str(path), soft_wrap=True)
