"""``agegen predict``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from agegen.cli.app import (
    Device,
    JsonOut,
    Offline,
    Precision,
    ShippedModel,
    Weights,
    app,
    make_notice_console,
    make_output_console,
    obey_offline,
    show_work,
)
from agegen.render.progress import ProgressDisplay, show_notices
from agegen.render.tables import PlainTable, format_duration, render_table

if TYPE_CHECKING:
    from agegen.predict.predict import PredictStart
    from agegen.predict.results import FacePrediction, PhotoPrediction
    from agegen.predict.shards import ShardResult

# More rows are no table to look at; files hold them all.
_ROWS_SHOWN = 1000


class PredictDisplay:
    """Shows how far a prediction is, and keeps what its table shows: the first rows, and counts of the rest."""

    def __init__(self, notices: Console, progress: ProgressDisplay) -> None:
        self._notices = notices
        self._progress = progress
        self._start: PredictStart | None = None
        self._started = time.monotonic()
        self._rows: list[FacePrediction] = []
        self._counts: Counter[str] = Counter()
        self._faces = 0

    @property
    def unreadable(self) -> int:
        """How many files were unreadable."""
        return self._counts["unreadable"]

    def show(self, event: PredictStart | PhotoPrediction | ShardResult) -> None:
        """Render one event."""
        from agegen.machine import use_one_thread_each
        from agegen.predict.predict import PredictStart
        from agegen.predict.shards import ShardResult

        if isinstance(event, PredictStart):
            self._show_start(event)
            # Many photographs are searched one on each core, which then has no use for more threads.
            if event.photos != 1:
                use_one_thread_each()
            return
        if isinstance(event, ShardResult):
            self._counts.update(event.statuses)
            self._faces += event.faces
        else:
            self._counts[event.status] += 1
            self._faces += len(event.faces)
            self._rows.extend(event.list_rows()[: max(0, _ROWS_SHOWN - len(self._rows))])
        done = self._counts.total()
        rate = done / max(time.monotonic() - self._started, 1e-6)
        total = self._start.photos if self._start else None
        self._progress.update("predicting", done, total, f"{rate:,.1f} photos/s")

    def _show_start(self, start: PredictStart) -> None:
        self._start, self._started = start, time.monotonic()
        notices = []
        if start.ignored:
            notices.append(start.ignored)
        if start.skipped:
            notices.append(f"{start.skipped:,} files were finished before")
        if not start.calibrated:
            notices.append("this checkpoint was never calibrated: take its intervals and probabilities with care")
        show_notices(self._notices, tuple(notices))

    def make_table(self) -> PlainTable:
        """Return one row per face, of the first thousand."""
        start = self._start
        assert start is not None
        found = "each picture taken as an aligned crop" if start.detector == "none" else f"faces: {start.detector}"
        more = self._faces + self._counts["no_face"] + self._counts["unreadable"] - len(self._rows)
        model = f"{start.model} ({start.engine})"
        caption = f"model: {model}; {found}; gender named from a probability of {start.min_confidence:.2f} on"
        if more:
            caption += f"; {more:,} more rows (write them with --csv FILE)"
        broken = frozenset(index for index, row in enumerate(self._rows) if row.reason is not None)
        columns = ["file", "face", "age", "90 % interval", "gender", "probability"]
        return PlainTable("", columns, [_list_cells(row) for row in self._rows], caption=caption, alarms=broken)

    def show_summary(self, always: bool) -> None:
        """Say in one line what was done, where it was more than one photograph or no table shows it (``always``)."""
        done = self._counts.total()
        if done > 1 or always:
            seconds = time.monotonic() - self._started
            self._notices.print(
                f"{self._faces:,} faces in {done:,} photographs, {self._counts['no_face']:,} without a face, "
                f"{self.unreadable:,} unreadable; {format_duration(seconds)}, {done / seconds:,.1f} photos/s",
                soft_wrap=True,
            )


@app.command()
def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT…",
            help="Files, folders (recursive) or globs, videos, Parquet with pictures or paths, addresses (s3://…) of "
            "either; - reads paths or a picture from stdin.",
        ),
    ] = None,
    model: ShippedModel = None,
    weights: Weights = None,
    run: Annotated[Path | None, typer.Option(help="A run folder or checkpoint of your own instead.")] = None,
    detector: Annotated[
        str,
        typer.Option(
            metavar="auto|mtcnn|yunet|none",
            help="What finds the faces: auto is yunet where its file is at hand, else mtcnn; none takes aligned crops.",
        ),
    ] = "auto",
    no_detect: Annotated[bool, typer.Option("--no-detect", help="The same as --detector none.")] = False,
    min_confidence: Annotated[
        float | None, typer.Option(help="Gender below it is 'uncertain', 0.5 to 1.", show_default="model's")
    ] = None,
    min_score: Annotated[float, typer.Option(help="Leave out faces of which the detector is less sure, 0 to 1.")] = 0.0,
    min_face: Annotated[
        float | None,
        typer.Option(metavar="PIXELS", help="The width of the smallest face wanted; small ones take longer to find."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Faces found by other means: CSV or JSON Lines, see `agegen help json`."),
    ] = None,
    distribution: Annotated[bool, typer.Option("--distribution", help="Rows hold P(age) over 0–116, too.")] = False,
    under: Annotated[
        list[int] | None, typer.Option(metavar="AGE", help="Rows hold P(age < AGE), too; may be given again.")
    ] = None,
    fps: Annotated[float, typer.Option(help="Of videos: how many frames of each second are looked at.")] = 2.0,
    every_frame: Annotated[bool, typer.Option("--every-frame", help="Of videos: look at all frames.")] = False,
    frames: Annotated[
        bool, typer.Option("--frames", help="Of videos and animations: a row for each face of each frame.")
    ] = False,
    json_out: JsonOut = None,
    jsonl_out: Annotated[
        str | None, typer.Option("--jsonl", metavar="FILE|-", help="Write one JSON object a line, as they come.")
    ] = None,
    csv_out: Annotated[str | None, typer.Option("--csv", metavar="FILE|-", help="Write CSV, as it comes.")] = None,
    parquet: Annotated[
        str | None,
        typer.Option(metavar="OUT", help="Write Parquet shards into a folder or to an address (s3://…)."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="local|ADDRESS", help="Make the shards of --parquet by Ray, here or on a cluster."),
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write copies with boxes and labels, of videos too.")
    ] = None,
    crops: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the aligned crops.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished file of --csv or --jsonl FILE.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Use the portrait that matplotlib brings.")] = False,
    engine: Annotated[
        str, typer.Option(metavar="auto|onnx|torch", help="What runs the model; auto is onnx wherever it can be.")
    ] = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    offline: Offline = False,
) -> None:
    """Find the faces in photographs and estimate the age and gender of each.

    One row per face. Exit code 1 if a file was unreadable. What the shipped models are good for, and what
    they must not be used for, stands in their cards: `agegen models --card NAME`.

    Example: agegen predict photos/ --csv faces.csv --annotate annotated/
    """
    obey_offline(offline)
    notices = make_notice_console()
    with show_work(notices):
        from agegen.files import find_portrait
        from agegen.predict.config import PredictConfig
        from agegen.predict.predict import predict_photos
        from agegen.predict.shards import predict_shards
        from agegen.render.progress import ProgressDisplay

    config = PredictConfig(
        inputs=(*(inputs or ()), *([str(find_portrait())] if demo else [])),
        model=model,
        weights=weights,
        run=run,
        detector="none" if no_detect else detector,
        min_confidence=min_confidence,
        min_score=min_score,
        min_face=min_face,
        boxes=boxes,
        distribution=distribution,
        under=tuple(under or ()),
        fps=fps,
        every_frame=every_frame,
        frames=frames,
        json=json_out,
        jsonl=jsonl_out,
        csv=csv_out,
        parquet=parquet,
        cluster=cluster,
        annotate=annotate,
        crops=crops,
        resume=resume,
        device=device,
        precision=precision,
        engine=engine,
    )
    with ProgressDisplay(notices) as progress:
        display = PredictDisplay(notices, progress)
        if config.parquet is not None:
            for made in predict_shards(config, sys.stdin.buffer):
                display.show(made)
        else:
            for event in predict_photos(config, sys.stdin.buffer, sys.stdout.buffer):
                display.show(event)
    if config.parquet is None and "-" not in config.outputs.values():
        make_output_console().print(render_table(display.make_table()))
    display.show_summary(always=config.parquet is not None)
    if display.unreadable:
        raise typer.Exit(1)


def _list_cells(row: FacePrediction) -> list[str]:
    if row.age is None or row.p_female is None:
        return [row.file, "", "", "", row.status if row.reason is None else f"{row.status}: {row.reason}", ""]
    probability = max(row.p_female, 1 - row.p_female)
    ages = f"{row.age:.1f}", f"{row.age_low:.0f}–{row.age_high:.0f}"
    return [row.file, str(row.face), *ages, str(row.gender), f"{probability:.2f}"]
