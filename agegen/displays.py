"""What moves on the terminal: progress, and the live displays of a training and of a prediction."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from agegen.report import format_duration, make_metrics_table

if TYPE_CHECKING:
    from agegen.experiment import TrainEvent, TrainResult
    from agegen.photographs import PredictStart
    from agegen.prediction import FacePrediction, PhotoPrediction
    from agegen.train_record import TrainStart
    from agegen.training import BatchResult, EpochResult

_ROWS_SHOWN = 1000


class ProgressDisplay:
    """Progress bars on a terminal, nothing elsewhere; used as a context and as a progress hook."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        self.update(stage, done, total)

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Show how far a stage is; a finished one goes, one without a known total stays."""
        task = self._tasks.get(stage)
        if task is None:
            task = self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
        self._progress.update(task, completed=done, total=total, note=note, visible=total is None or done < total)


class TrainDisplay:
    """Shows the events of a training: bars and a line per epoch on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, notices: Console, progress: ProgressDisplay) -> None:
        self._console = console
        self._notices = notices
        self._progress = progress
        self._epochs = 0

    def show(self, event: TrainEvent) -> None:
        """Render one event."""
        from agegen.experiment import TrainNotice, TrainResult
        from agegen.train_record import TrainStart
        from agegen.training import BatchResult

        if isinstance(event, BatchResult):
            self._show_batch(event)
        elif isinstance(event, TrainStart):
            self._show_start(event)
        elif isinstance(event, TrainNotice):
            show_notices(self._notices, event.notices)
        elif isinstance(event, TrainResult):
            self._show_result(event)
        else:
            self._show_epoch(event)

    def _show_start(self, start: TrainStart) -> None:
        self._epochs = start.epochs
        total, trainable = start.parameters
        counts = ", ".join(f"{start.counts.get(name, 0):,} {name}" for name in ("train", "val", "test"))
        show_notices(self._notices, start.notices)
        self._console.print(f"{start.model}: {total:,} parameters, {trainable:,} trained; {start.setting}")
        self._console.print(f"faces: {counts}; run folder {start.run}")

    def _show_batch(self, batch: BatchResult) -> None:
        stage = f"epoch {batch.epoch}/{self._epochs}"
        note = f"loss {batch.loss:.3f}, {batch.images_per_second:,.0f} images/s"
        self._progress.update(stage, batch.batch, batch.batches, note)
        finished = batch.epoch - 1 + (batch.batch / batch.batches)
        self._progress.update("all epochs", int(finished * batch.batches), self._epochs * batch.batches)

    def _show_epoch(self, epoch: EpochResult) -> None:
        left = epoch.seconds / epoch.epoch * (self._epochs - epoch.epoch)
        best = "  best so far" if epoch.best else ""
        self._console.print(
            f"epoch {epoch.epoch:>3}/{self._epochs}  loss {epoch.train_loss:.3f}  val loss {epoch.val_loss:.3f}  "
            f"val MAE {epoch.val_mae:.2f} years  val accuracy {epoch.val_accuracy:.1%}  "
            f"{epoch.images_per_second:,.0f} images/s  {format_duration(left)} left{best}",
            soft_wrap=True,
        )

    def _show_result(self, result: TrainResult) -> None:
        title = f"{result.model}, epoch {result.best.epoch}, on the {result.evaluation.n:,} faces of the test split"
        self._console.print(make_metrics_table(result.evaluation, title))
        self._console.print(f"took {format_duration(result.seconds)}; run folder:")
        self._console.print(str(result.run), soft_wrap=True)


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

    def show(self, event: PredictStart | PhotoPrediction) -> None:
        """Render one event."""
        from agegen.photographs import PredictStart

        if isinstance(event, PredictStart):
            self._show_start(event)
            return
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
        if start.skipped:
            notices.append(f"{start.skipped:,} files were finished before")
        if not start.calibrated:
            notices.append("this checkpoint was never calibrated: take its intervals and probabilities with care")
        show_notices(self._notices, tuple(notices))

    def make_table(self) -> Table:
        """Return one row per face, of the first thousand."""
        start = self._start
        assert start is not None
        found = "each picture taken as an aligned crop" if start.detector == "none" else f"faces: {start.detector}"
        more = self._faces + self._counts["no_face"] + self._counts["unreadable"] - len(self._rows)
        model = f"{start.model} ({start.engine})"
        caption = f"model: {model}; {found}; gender named from a probability of {start.min_confidence:.2f} on"
        if more:
            caption += f"; {more:,} more rows (write them with --csv FILE)"
        table = Table(caption=caption, caption_justify="left")
        table.add_column("file", overflow="fold", min_width=20)
        for name in ("face", "age", "90 % interval", "gender", "probability"):
            # A reason stands in the column of the gender, and may take several lines.
            table.add_column(name, justify="left" if name == "gender" else "right", no_wrap=name != "gender")
        for row in self._rows:
            table.add_row(*_format_prediction(row))
        return table

    def show_summary(self) -> None:
        """Say in one line what was done, where it was more than one photograph."""
        done = self._counts.total()
        if done > 1:
            seconds = time.monotonic() - self._started
            self._notices.print(
                f"{self._faces:,} faces in {done:,} photographs, {self._counts['no_face']:,} without a face, "
                f"{self.unreadable:,} unreadable; {format_duration(seconds)}, {done / seconds:,.1f} photos/s",
                soft_wrap=True,
            )


def show_notices(console: Console, notices: tuple[str, ...]) -> None:
    """Print notices, one a line."""
    for notice in notices:
        console.print(f"note: {notice}", style="yellow", soft_wrap=True)


def _format_prediction(row: FacePrediction) -> tuple[Text, ...]:
    # A name that isn't UTF-8 can't be printed as it is.
    file = Text(row.file.encode("utf-8", errors="replace").decode())
    if row.age is None or row.p_female is None:
        said = row.status if row.reason is None else f"{row.status}: {row.reason}"
        return (file, Text(""), Text(""), Text(""), Text(said, style="red" if row.reason else "yellow"), Text(""))
    probability = max(row.p_female, 1 - row.p_female)
    cells = (str(row.face), f"{row.age:.1f}", f"{row.age_low:.0f}–{row.age_high:.0f}", str(row.gender))
    return (file, *(Text(cell) for cell in cells), Text(f"{probability:.2f}"))
