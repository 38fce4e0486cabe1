"""The options of ``agegen eval``, ``agegen calibrate`` and ``agegen compare``: which model, on which faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from agegen.options import (
    DATA,
    DEFAULT_READ_OPTIONS,
    MODEL,
    OUTPUT,
    CacheDirOption,
    CropDetectorOption,
    DeviceOption,
    OtherDataOption,
    PrecisionOption,
    ReadOptions,
    SplitName,
    WeightsOption,
)

_SplitOption = Annotated[SplitName, typer.Option(help="Which faces.", rich_help_panel=DATA)]


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``agegen eval``; no ``data`` means the data that the run was trained on.

    ``model`` selects bundled weights instead of a run; ``weights`` names one of several. ``distributions``: whether the
    predictions contain P(age).
    """

    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Run folder, folder of --folds, or checkpoint. Default: the newest run in ./runs."
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Evaluate this model's bundled weights.", rich_help_panel=MODEL)
    ] = None
    data: OtherDataOption = ()
    split: _SplitOption = "test"
    device: DeviceOption = "auto"
    precision: PrecisionOption = "auto"
    cache_dir: CacheDirOption = None
    reading: ReadOptions = DEFAULT_READ_OPTIONS
    detector: CropDetectorOption = None
    weights: WeightsOption = None
    distributions: Annotated[
        bool,
        typer.Option(
            "--distributions",
            help="Include P(age), 0–116, in --predictions: soft labels for `agegen train`.",
            rich_help_panel=OUTPUT,
        ),
    ] = False


@dataclass(frozen=True)
class CalibrateConfig:
    """Options of ``agegen calibrate``: a run, or bundled weights, and the labelled faces to calibrate on."""

    data: Annotated[
        tuple[str, ...],
        typer.Option(metavar="PATH", help="Your labelled faces, at least 50 (repeatable).", rich_help_panel=DATA),
    ]
    out: Annotated[
        Path, typer.Option(metavar="FILE.safetensors", help="The calibrated copy.", rich_help_panel=OUTPUT)
    ] = Path("calibrated.safetensors")
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder or checkpoint. Default: bundled weights.")
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Calibrate this model's bundled weights. Default: compact.", rich_help_panel=MODEL
        ),
    ] = None
    weights: WeightsOption = None
    detector: CropDetectorOption = None
    device: DeviceOption = "auto"
    cache_dir: CacheDirOption = None
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class CompareConfig:
    """Options of ``agegen compare``; for ``runs`` see :func:`agegen.compare.models.choose_models`."""

    runs: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="RUN|MODEL…",
            help="Runs, folders of --seeds, hf://OWNER/NAME, or bundled weights, NAME or NAME/WEIGHTS (with --data). "
            "Default: the newest run of each model in ./runs.",
        ),
    ] = ()
    data: OtherDataOption = ()
    split: _SplitOption = "test"
    device: DeviceOption = "auto"
    cache_dir: CacheDirOption = None
