"""The options of ``agegen data check``, ``data crop``, ``data convert`` and ``agegen split``."""

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
    CropDetectorOption,
    DeviceOption,
    ProtocolOption,
    ReadOptions,
    WeightsOption,
    check_detector,
    complete_detectors,
)

_DataArgument = Annotated[
    tuple[str, ...], typer.Argument(metavar="PATH…", help="Folders in a known layout, tables of images, or 'demo'.")
]


@dataclass(frozen=True)
class CheckConfig:
    """Options of ``agegen data check``; with ``run`` or ``model``, a trained model searches for label errors."""

    data: _DataArgument
    run: Annotated[
        Path | None,
        typer.Option(help="Find likely label errors with this run or checkpoint.", rich_help_panel=MODEL),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Find likely label errors with this model's bundled weights.", rich_help_panel=MODEL
        ),
    ] = None
    device: DeviceOption = "auto"
    reading: ReadOptions = DEFAULT_READ_OPTIONS
    weights: WeightsOption = None


@dataclass(frozen=True)
class SplitConfig:
    """Options of ``agegen split``; ``protocol`` selects the ages and the split fractions of a published comparison."""

    data: _DataArgument
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.csv", help="The split file.", rich_help_panel=OUTPUT)
    ] = Path("split.csv")
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, as in training.", rich_help_panel=DATA)] = 0
    protocol: ProtocolOption = None
    detector: CropDetectorOption = None
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class CropConfig:
    """Options of ``agegen data crop``."""

    data: Annotated[
        tuple[str, ...],
        typer.Argument(metavar="PATH…", help="Labelled photos: folders in a known layout, or tables."),
    ]
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the crops and their labels.csv.")]
    detector: Annotated[
        str,
        typer.Option(
            metavar="auto|mtcnn|yunet",
            callback=check_detector,
            autocompletion=complete_detectors,
            help="Face detector; auto: yunet if it has been downloaded, otherwise mtcnn.",
            rich_help_panel=DATA,
        ),
    ] = "auto"
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class ConvertConfig:
    """Options of ``agegen data convert``."""

    data: Annotated[tuple[str, ...], typer.Argument(metavar="PATH…", help="Datasets in known layouts, or tables.")]
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Manifest to write: OUT.csv or OUT.parquet.")]
    embed: Annotated[
        bool,
        typer.Option(
            "--embed", help="Store the images in the Parquet file, as Hugging Face does.", rich_help_panel=OUTPUT
        ),
    ] = False
    reading: ReadOptions = DEFAULT_READ_OPTIONS
