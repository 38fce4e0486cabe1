"""``agegen train``."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from agegen.cli.app import TRAIN, add_command, make_notice_console, make_output_console, show_work
from agegen.distributed import read_rank, shutdown_distributed
from agegen.errors import AgegenError, TrainingInterrupted
from agegen.options import OUTPUT, with_options
from agegen.render.progress import ProgressDisplay, show_notices
from agegen.render.tables import METRIC_TITLES, PlainTable, format_duration, format_value, render_table
from agegen.train.config import StudyConfig, TrainConfig, read_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agegen.train.loop import BatchResult, EpochResult, StudyEvent, StudyResult, TrainResult, TrainStart


# The metrics shown; the study's JSON has all of them.
_SHOWN = ("mae", "cs5", "in_bracket", "accuracy", "coverage", "width")


class _Interrupts:
    """From the first batch on, the first Ctrl-C lets the training finish its batch; a second one ends the process."""

    def __init__(self, notices: Console) -> None:
        self._notices = notices
        self._noted = False
        self._catching = False
        self._before: Any = signal.default_int_handler

    def pending(self) -> bool:
        return self._noted

    def catch(self) -> None:
        # Python delivers signals to the main thread only.
        if not self._catching and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._catching = True

    def release(self) -> None:
        """Restore the previous handler of Ctrl-C."""
        if self._catching:
            signal.signal(signal.SIGINT, self._before)
            self._catching = False

    def _note(self, *_: Any) -> None:
        self._noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._notices.print("finishing the batch and saving; press Ctrl-C again to stop at once", style="yellow")


class TrainDisplay:
    """Shows the events of a training: progress bars and a line per epoch on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, notices: Console, progress: ProgressDisplay) -> None:
        self._console = console
        self._notices = notices
        self._progress = progress
        self.epochs = 0
        # The folder that --resume takes: the run's, or the study's.
        self.folder: Path | None = None
        self._in_study = False

    def show(self, event: StudyEvent) -> None:
        """Render one event."""
        from agegen.train.loop import BatchResult, EpochResult, PartStart, StudyResult, TrainNotice, TrainStart

        if isinstance(event, BatchResult):
            self._show_batch(event)
        elif isinstance(event, TrainStart):
            self._show_start(event)
        elif isinstance(event, TrainNotice):
            show_notices(self._notices, event.notices)
        elif isinstance(event, EpochResult):
            self._show_epoch(event)
        elif isinstance(event, PartStart):
            self.folder, self._in_study = event.run.parent, True
            self._console.print(f"{event.kind.removesuffix('s')} {event.number} of {event.count}")
        elif isinstance(event, StudyResult):
            self._show_study(event)
        else:
            self._show_result(event)

    def _show_start(self, start: TrainStart) -> None:
        self.epochs = start.epochs
        if not self._in_study:
            self.folder = start.run
        total, trainable = start.parameters
        counts = ", ".join(f"{start.counts.get(name, 0):,} {name}" for name in ("train", "val", "test"))
        show_notices(self._notices, start.notices)
        self._console.print(f"{start.model}: {total:,} parameters, {trainable:,} trained; {start.setting}")
        self._console.print(f"faces: {counts}; run folder {start.run}")

    def _show_batch(self, batch: BatchResult) -> None:
        stage = f"epoch {batch.epoch}/{self.epochs}"
        note = f"loss {batch.loss:.3f}, {batch.images_per_second:,.0f} images/s"
        self._progress.update(stage, batch.batch, batch.batches, note)
        finished = batch.epoch - 1 + (batch.batch / batch.batches)
        self._progress.update("all epochs", int(finished * batch.batches), self.epochs * batch.batches)

    def _show_epoch(self, epoch: EpochResult) -> None:
        left = epoch.seconds / epoch.epoch * (self.epochs - epoch.epoch)
        best = "  best so far" if epoch.best else ""
        self._console.print(
            f"epoch {epoch.epoch:>3}/{self.epochs}  loss {epoch.train_loss:.3f}  val loss {epoch.val_loss:.3f}  "
            f"{_format_validation(epoch)}"
            f"{epoch.images_per_second:,.0f} images/s  {format_duration(left)} left{best}",
            soft_wrap=True,
        )

    def _show_result(self, result: TrainResult) -> None:
        from agegen.evaluate.report import make_metrics_table

        title = f"{result.model}, epoch {result.best.epoch}: {result.evaluation.n:,} faces of the test split"
        self._console.print(render_table(make_metrics_table(result.evaluation, title)))
        self._console.print(f"took {format_duration(result.seconds)}; run folder:")
        self._console.print(str(result.run), soft_wrap=True)

    def _show_study(self, result: StudyResult) -> None:
        title = f"{result.summary['model']}, {result.summary['count']} {result.summary['kind']}"
        self._console.print(render_table(make_study_table(result.summary, title)))
        self._console.print(f"took {format_duration(result.seconds)}; study folder:")
        self._console.print(str(result.path), soft_wrap=True)


def make_study_table(summary: dict[str, Any], title: str) -> PlainTable:
    """Return a row for each run, then the mean and the standard deviation over the runs."""
    names = [name for name in _SHOWN if name in summary["mean"]]
    rows = [
        [part["run"], f"{part['n']:,}", *(format_value(name, part["metrics"][name]) for name in names)]
        for part in summary["parts"]
    ]
    for label in ("mean", "spread"):
        rows.append([label, "", *(format_value(name, summary[label][name]) for name in names)])
    columns = ["", "faces", *(METRIC_TITLES[name] for name in names)]
    return PlainTable(title, columns, rows, sections=frozenset([len(rows) - 3]))


def _format_validation(epoch: EpochResult) -> str:
    """Return the validation metrics for which there are labels."""
    shown = (
        (epoch.val_mae, f"val MAE {epoch.val_mae:.2f} years  "),
        (epoch.val_in_bracket, f"val in bracket {100 * epoch.val_in_bracket:.1f} %  "),
        (epoch.val_accuracy, f"val accuracy {100 * epoch.val_accuracy:.1f} %  "),
    )
    return "".join(text for value, text in shown if value == value)


@add_command("train", "agegen train --model scratch --data data/utkface", TRAIN)
@with_options(StudyConfig, partial=True)
def train(
    given: dict[str, Any],
    *,
    log: Annotated[
        Literal["tensorboard"] | None,
        typer.Option(help="Also log losses and metrics for TensorBoard.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Train a model and evaluate it on the test split.

    Ctrl-C finishes the batch, saves the state, and prints the command that resumes the run.
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.batches.images import explain_loader_errors
        from agegen.machine import keep_freed_memory
        from agegen.train.loop import BatchResult, EpochResult
        from agegen.train.study import train_study
        from agegen.train.train import train_and_finish

    config = choose_config(given)
    # In the command and not in the library: it changes how the whole process allocates memory.
    keep_freed_memory()
    output = make_output_console()
    interrupts = _Interrupts(notices)
    with ProgressDisplay(output if output.is_terminal else notices) as progress, ExitStack() as stack:
        display = TrainDisplay(output, notices, progress)
        stack.enter_context(explain_loader_errors(lambda: display.folder))
        stack.enter_context(_explain_interruption(display))
        run = train_study if isinstance(config, StudyConfig) else train_and_finish
        events: Iterator[StudyEvent] = run(config, progress, interrupts.pending)  # type: ignore[arg-type]
        if log is not None and read_rank() == 0:
            from agegen.train.tensorboard import log_events

            events = log_events(events)
        for event in events:
            # After the last epoch no state is saved any more, and Ctrl-C ends the process at once.
            if isinstance(event, BatchResult):
                interrupts.catch()
            elif isinstance(event, EpochResult) and event.epoch == display.epochs:
                interrupts.release()
            display.show(event)
    shutdown_distributed()


@contextmanager
def _explain_interruption(display: TrainDisplay) -> Iterator[None]:
    """Say how to continue after Ctrl-C where no batch is finished first: before the first one and after the last."""
    try:
        yield
    except KeyboardInterrupt:
        if display.folder is None:
            raise
        raise TrainingInterrupted(f"interrupted; resume with `agegen train --resume {display.folder}`") from None


def choose_config(given: dict[str, Any]) -> TrainConfig | StudyConfig:
    """Return the options of a new run or study, or those of the one that is resumed.

    Raises:
        AgegenError: the options contradict each other or the run.
    """
    from agegen.data.loading import resolve_data
    from agegen.evaluate.study import is_study
    from agegen.train.study import read_study

    study = {name: given.pop(name, None) for name in ("folds", "fold", "seeds")}
    resume = given.get("resume")
    if study["fold"] is not None and study["folds"] is None and not (resume and is_study(resume)):
        raise AgegenError("--fold I requires --folds K, or --resume with such a study")
    if resume is not None:
        if study["folds"] is not None or study["seeds"] is not None:
            raise AgegenError(f"cannot combine --resume {resume} with --folds or --seeds; omit them")
        return read_study(resume, given, study["fold"]) if is_study(resume) else read_config(resume, given)
    if "model" not in given:
        raise AgegenError("give --model NAME (see `agegen models`), or --resume RUN")
    config = TrainConfig(**(given | {"data": resolve_data(given.get("data"))}))
    return config if study["folds"] is None and study["seeds"] is None else StudyConfig(config, **study)
