"""``agegen predict``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from agegen.cli.app import (
    USE,
    add_command,
    confirm_report,
    make_notice_console,
    make_output_console,
    obey_offline,
    show_work,
)
from agegen.errors import escape_controls, format_count
from agegen.machine import postpone_garbage_collection
from agegen.options import FACES, OfflineOption, with_options
from agegen.predict.config import PredictConfig, check_options
from agegen.render.progress import ProgressDisplay, show_notices
from agegen.render.tables import PlainTable, format_duration, render_table

if TYPE_CHECKING:
    from agegen.predict.predict import PredictNotice, PredictStart
    from agegen.predict.results import FacePrediction, PhotoPrediction
    from agegen.predict.shards import ShardResult

# Longer tables are not readable; files contain all rows.
_ROWS_SHOWN = 1000


class PredictDisplay:
    """Shows the progress of a prediction, and keeps the first rows and counts of the rest for its table."""

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
        """The number of unreadable files."""
        return self._counts["unreadable"]

    def show(self, event: PredictStart | PredictNotice | PhotoPrediction | ShardResult) -> None:
        """Render one event."""
        from agegen.machine import use_one_thread_each
        from agegen.predict.predict import PredictNotice, PredictStart
        from agegen.predict.results import PhotoPrediction

        if isinstance(event, PredictNotice):
            show_notices(self._notices, (event.text,))
            return
        if isinstance(event, PredictStart):
            self._show_start(event)
            # Several photos are searched at once, one on each core: more threads per photo would only compete.
            if event.photos != 1:
                use_one_thread_each()
            return
        if isinstance(event, PhotoPrediction):
            self._counts[event.status] += 1
            self._faces += len(event.faces)
            if len(self._rows) < _ROWS_SHOWN:
                self._rows.extend(event.list_rows()[: _ROWS_SHOWN - len(self._rows)])
        else:
            self._counts.update(event.statuses)
            self._faces += event.faces
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
            total = "" if start.photos is None else f" of {start.skipped + start.photos:,}"
            notices.append(f"continuing after {start.skipped:,}{total} inputs")
        notices += start.notices
        if not start.calibrated:
            notices.append("this checkpoint is not calibrated: its intervals and probabilities are unreliable")
        show_notices(self._notices, tuple(notices))

    def make_table(self) -> PlainTable:
        """Return one row per face, at most the first thousand."""
        start = self._start
        assert start is not None
        found = "each image is an aligned crop" if start.detector == "none" else f"faces: {start.detector}"
        more = self._faces + self._counts["no_face"] + self._counts["unreadable"] - len(self._rows)
        model = f"{start.model} ({start.engine})"
        low, high = (f"{threshold:.2f}" for threshold in start.thresholds)
        gender = f"gender threshold {low}" if low == high else f"gender thresholds {low}–{high}, by estimated age"
        caption = f"model: {model}; {found}; {gender}"
        if more:
            caption += f"; {format_count(more, 'more row')} (write them with --csv FILE)"
        broken = frozenset(index for index, row in enumerate(self._rows) if row.reason is not None)
        columns = ["file", "face", "age", "90 % interval", "gender", "probability"]
        if any(row.status != "ok" for row in self._rows):
            columns.append("problem")
            rows = [[*_list_cells(row), _describe_problem(row)] for row in self._rows]
        else:
            rows = [_list_cells(row) for row in self._rows]
        return PlainTable("", columns, rows, caption=caption, alarms=broken)

    def show_summary(self, always: bool) -> None:
        """Print a summary in one line, if there is more than one photo or no table shows the rows (``always``)."""
        done = self._counts.total()
        if done > 1 or always:
            seconds = time.monotonic() - self._started
            faces, photos = format_count(self._faces, "face"), format_count(done, "photo")
            self._notices.print(
                f"{faces} in {photos}, {self._counts['no_face']:,} without a face, "
                f"{self.unreadable:,} unreadable; {format_duration(seconds)}, {done / seconds:,.1f} photos/s",
                soft_wrap=True,
            )


@add_command("predict", "agegen predict photos/ --csv faces.csv --annotate annotated/", USE)
@with_options(PredictConfig)
def predict(
    config: PredictConfig,
    *,
    no_detect: Annotated[
        bool, typer.Option("--no-detect", help="Same as --detector none.", rich_help_panel=FACES)
    ] = False,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Run on the sample portrait bundled with matplotlib."),
    ] = False,
    offline: OfflineOption = False,
) -> None:
    """Find faces in photos and estimate the age and gender of each.

    The output has one row per face. Exit code 1 if a file is unreadable. `agegen models --card NAME` shows a model's
    intended use and limitations.
    """
    obey_offline(offline)
    notices = make_notice_console()
    with show_work(notices), postpone_garbage_collection():
        from agegen.files import find_portrait
        from agegen.predict.predict import list_photos, load_estimator, predict_photos

    if demo:
        config = replace(config, inputs=(*config.inputs, str(find_portrait())))
    if no_detect:
        config = replace(config, detector="none")
    with _explain_interruption(config, notices), ProgressDisplay(notices) as progress:
        display = PredictDisplay(notices, progress)
        if config.parquet is not None:
            from agegen.predict.shards import predict_shards

            for made in predict_shards(config, sys.stdin.buffer):
                display.show(made)
        else:
            check_options(config)
            # Listed first: a name that does not exist is reported without waiting for the model.
            photos = list_photos(config.inputs, config.boxes, sys.stdin.buffer, config.copies)
            # Closed here, so that its outputs are complete before anything is said about them.
            with closing(predict_photos(config, load_estimator(config), photos, sys.stdout.buffer)) as events:
                for event in events:
                    display.show(event)
    if config.parquet is None and not config.outputs:
        make_output_console().print(render_table(display.make_table()))
    display.show_summary(always=config.writes_only_files)
    if config.report is not None:
        confirm_report(config.report)
    if display.unreadable:
        raise typer.Exit(1)


@contextmanager
def _explain_interruption(config: PredictConfig, notices: Console) -> Iterator[None]:
    """Say after Ctrl-C where the page is, and how to continue, if the output can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        if config.report is not None and config.report.exists():
            confirm_report(config.report)
        if config.is_resumable:
            notices.print("to continue, repeat the command with --resume")
        raise


def _list_cells(row: FacePrediction) -> list[str]:
    file = escape_controls(row.file)
    if row.p_female is None:
        return [file, "", "", "", "", ""]
    probability = max(row.p_female, 1 - row.p_female)
    # A model that was trained without ages gives none.
    ages = ("–", "–") if row.age is None else (f"{row.age:.1f}", f"{row.age_low:.0f}–{row.age_high:.0f}")
    return [file, str(row.face), *ages, str(row.gender), f"{probability:.2f}"]


def _describe_problem(row: FacePrediction) -> str:
    if row.status == "ok":
        return ""
    return row.status if row.reason is None else f"{row.status}: {row.reason}"
