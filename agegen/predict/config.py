"""The options of ``agegen predict`` and ``agegen explain``, and which of them can be combined."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from agegen.errors import AgegenError
from agegen.options import (
    COMPUTE,
    FACES,
    MODEL,
    OUTPUT,
    SCALE,
    VIDEO,
    DeviceOption,
    EngineName,
    InferencePrecisionOption,
    JsonOption,
    WeightsOption,
    check_detector,
    complete_detectors,
    select_fields,
)

STDIN = "-"
_ROW_FORMATS = ("json", "jsonl", "csv")

ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model with bundled weights. Default: compact.", rich_help_panel=MODEL),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Run folder, checkpoint or hf://OWNER/NAME[@REVISION] instead of --model.",
        rich_help_panel=MODEL,
    ),
]
DetectorOption = Annotated[
    str,
    typer.Option(
        metavar="auto|mtcnn|yunet|none",
        callback=check_detector,
        autocompletion=complete_detectors,
        help="Face detector; auto: yunet if downloaded, otherwise mtcnn; none: the images are aligned crops.",
        rich_help_panel=FACES,
    ),
]
_DECIDES_ROWS = {"decides_rows": True}


@dataclass(frozen=True)
class PredictConfig:
    """Options of ``agegen predict``; ``json``, ``jsonl`` and ``csv`` are files, or ``-`` for stdout.

    ``parquet`` is a folder or an address for shards, and ``cluster`` where they are computed: see
    :mod:`agegen.predict.shards`.
    """

    inputs: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="INPUT…",
            help="Images, videos, folders (recursive), globs, Parquet with images or paths, addresses (s3://…); - "
            "reads an image, or a list of paths, from stdin.",
        ),
    ] = ()
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE|-",
            help="Write CSV, as results arrive; replaces FILE without --resume.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    json: JsonOption = None
    jsonl: Annotated[
        str | None,
        typer.Option(
            "--jsonl",
            metavar="FILE|-",
            help="Write one JSON object per line, as results arrive.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    annotate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write copies with boxes and labels, of videos as well.", rich_help_panel=OUTPUT
        ),
    ] = None
    crops: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the aligned crops.", rich_help_panel=OUTPUT)
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write one self-contained page with the crops of all faces.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip files that are already in --csv/--jsonl FILE, or shards in --parquet OUT.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    detector: DetectorOption = "auto"
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Report gender as 'uncertain' below this probability (0.5–1).",
            show_default="model's",
            rich_help_panel=FACES,
        ),
    ] = field(default=None, metadata=_DECIDES_ROWS)
    min_score: Annotated[float, typer.Option(help="Minimum detection score (0–1).", rich_help_panel=FACES)] = field(
        default=0.0, metadata=_DECIDES_ROWS
    )
    min_face: Annotated[
        float | None,
        typer.Option(
            metavar="PIXELS",
            help="Detect faces down to this width; smaller is slower.",
            show_default="24 in 1000 px",
            rich_help_panel=FACES,
        ),
    ] = field(default=None, metadata=_DECIDES_ROWS)
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Bounding boxes from another detector, CSV or JSON Lines; see `agegen help json`.",
            rich_help_panel=FACES,
        ),
    ] = field(default=None, metadata=_DECIDES_ROWS)
    fps: Annotated[float, typer.Option(help="Frames per second to sample from videos.", rich_help_panel=VIDEO)] = field(
        default=2.0, metadata=_DECIDES_ROWS
    )
    every_frame: Annotated[
        bool, typer.Option("--every-frame", help="Process every frame of a video.", rich_help_panel=VIDEO)
    ] = field(default=False, metadata=_DECIDES_ROWS)
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help="Write one row per face and frame of a video or animation, not one per person.",
            rich_help_panel=VIDEO,
        ),
    ] = field(default=False, metadata=_DECIDES_ROWS)
    under: Annotated[
        tuple[int, ...],
        typer.Option(metavar="AGE", help="Include P(age < AGE) in each row (repeatable).", rich_help_panel=OUTPUT),
    ] = field(default=(), metadata=_DECIDES_ROWS)
    distribution: Annotated[
        bool,
        typer.Option(
            "--distribution", help="Include the age distribution P(age), 0–116, in each row.", rich_help_panel=OUTPUT
        ),
    ] = field(default=False, metadata=_DECIDES_ROWS)
    model: ModelOption = None
    weights: WeightsOption = None
    run: RunOption = None
    device: DeviceOption = "auto"
    precision: InferencePrecisionOption = "auto"
    engine: Annotated[
        EngineName,
        typer.Option(help="Inference engine; auto prefers onnx.", rich_help_panel=COMPUTE),
    ] = "auto"
    parquet: Annotated[
        str | None,
        typer.Option(
            metavar="OUT", help="Write Parquet shards to a folder or an address (s3://…).", rich_help_panel=SCALE
        ),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="local|ADDRESS",
            help="Compute the shards of --parquet with Ray, here or on a cluster.",
            rich_help_panel=SCALE,
        ),
    ] = None

    @property
    def outputs(self) -> dict[str, str]:
        """The row outputs, by format."""
        chosen = {kind: getattr(self, kind) for kind in _ROW_FORMATS}
        return {kind: target for kind, target in chosen.items() if target is not None}

    @property
    def copies(self) -> list[Path]:
        """The folders of annotated copies and crops."""
        return [folder for folder in (self.annotate, self.crops) if folder is not None]

    @property
    def writes_only_files(self) -> bool:
        """Whether no rows appear on the terminal."""
        return self.parquet is not None or (bool(self.outputs) and "-" not in self.outputs.values())

    @property
    def is_resumable(self) -> bool:
        """Whether an interrupted prediction can be continued: with one output, CSV, JSON Lines or Parquet."""
        if self.parquet is not None:
            return True
        return self.outputs.keys() in ({"csv"}, {"jsonl"}) and "-" not in self.outputs.values()

    def format_row_options(self) -> str:
        """Return the non-default options that affect the rows, such as ``min_score=0.5``; "" if there are none.

        In the order of the fields, which must stay: ``--resume`` compares this text with that of the rows.
        """
        default = PredictConfig()
        names = select_fields(PredictConfig, decides_rows=True)
        changed = [name for name in names if getattr(self, name) != getattr(default, name)]
        return " ".join(f"{name}={_format(getattr(self, name))}" for name in changed)


@dataclass(frozen=True)
class ExplainConfig:
    """Options of ``agegen explain``; ``face`` is its number in the photo, from 1, as in the rows of ``predict``."""

    picture: Annotated[str, typer.Argument(metavar="IMAGE", help="A photo with a face.")]
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The figure to write.", rich_help_panel=OUTPUT)
    ] = Path("map.png")
    model: ModelOption = None
    weights: WeightsOption = None
    run: RunOption = None
    detector: DetectorOption = "auto"
    face: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Which face, by its number in predict: by rows, left to right.",
            rich_help_panel=FACES,
        ),
    ] = 1
    method: Annotated[
        Literal["occlusion", "grad-cam"],
        typer.Option(
            help="occlusion: cover each region in turn; grad-cam: gradients at the last convolution.",
            rich_help_panel=OUTPUT,
        ),
    ] = "occlusion"


def check_options(config: PredictConfig) -> None:
    """Check the combination of inputs and outputs.

    Raises:
        AgegenError: it is invalid.
    """
    if not config.inputs and config.boxes is None:
        raise AgegenError("no input. Give files, folders or globs, - for paths or an image on stdin, or --demo.")
    if STDIN in config.inputs and len(config.inputs) > 1:
        raise AgegenError("- cannot be combined with other inputs")
    if not config.fps > 0:
        raise AgegenError("--fps must be greater than 0")
    if sum(target == "-" for target in config.outputs.values()) > 1:
        raise AgegenError("only one of --json, --jsonl and --csv can write to stdout. Give a file for the others.")
    if config.cluster is not None and config.parquet is None:
        raise AgegenError("--cluster requires --parquet OUT")
    if config.parquet is not None:
        others = [name for name in (*_ROW_FORMATS, "annotate", "crops", "report") if getattr(config, name) is not None]
        if others:
            raise AgegenError(f"--parquet cannot be combined with --{others[0]}")
        return
    if config.resume and not config.is_resumable:
        raise AgegenError("--resume requires exactly one output: --csv FILE, --jsonl FILE or --parquet DIR")


def _format(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
