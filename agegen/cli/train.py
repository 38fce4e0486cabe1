"""``agegen train``."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agegen.cli.app import (
    AgeColumn,
    CacheDir,
    CropDetector,
    Data,
    GenderCodes,
    Protocol,
    app,
    make_notice_console,
    make_output_console,
    show_work,
)
from agegen.distributed import read_rank, shutdown_distributed
from agegen.errors import AgegenError
from agegen.render.progress import ProgressDisplay, show_notices
from agegen.render.tables import METRIC_TITLES, PlainTable, format_duration, format_value, render_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agegen.train.config import TrainConfig
    from agegen.train.loop import BatchResult, EpochResult, StudyEvent, StudyResult, TrainResult, TrainStart
    from agegen.train.study import StudyConfig


# Options that say what is done with a training's configuration, rather than belong to it.
_NOT_IN_CONFIG = ("resume", "folds", "fold", "seeds", "log")

# What a study is about; the rest stands in its JSON.
_SHOWN = ("mae", "cs5", "in_bracket", "accuracy", "coverage", "width")


class _Interrupts:
    """From the first batch on: the first Ctrl-C is noted, for the training to finish its batch; a second one kills."""

    def __init__(self, notices: Console) -> None:
        self._notices = notices
        self._noted = False
        self._catching = False
        self._before: Any = signal.default_int_handler

    def pending(self) -> bool:
        return self._noted

    def catch(self) -> None:
        # Signals reach the main thread alone; elsewhere they are somebody else's.
        if not self._catching and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._catching = True

    def release(self) -> None:
        """Give Ctrl-C back what it did before."""
        if self._catching:
            signal.signal(signal.SIGINT, self._before)
            self._catching = False

    def _note(self, *_: Any) -> None:
        self._noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._notices.print("finishing the batch, then saving; Ctrl-C again stops at once", style="yellow")


class TrainDisplay:
    """Shows the events of a training: bars and a line per epoch on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, notices: Console, progress: ProgressDisplay) -> None:
        self._console = console
        self._notices = notices
        self._progress = progress
        self.epochs = 0

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
            self._console.print(f"{event.kind.removesuffix('s')} {event.number} of {event.count}")
        elif isinstance(event, StudyResult):
            self._show_study(event)
        else:
            self._show_result(event)

    def _show_start(self, start: TrainStart) -> None:
        self.epochs = start.epochs
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

        title = f"{result.model}, epoch {result.best.epoch}, on the {result.evaluation.n:,} faces of the test split"
        self._console.print(render_table(make_metrics_table(result.evaluation, title)))
        self._console.print(f"took {format_duration(result.seconds)}; run folder:")
        self._console.print(str(result.run), soft_wrap=True)

    def _show_study(self, result: StudyResult) -> None:
        title = f"{result.summary['model']}, {result.summary['count']} {result.summary['kind']}"
        self._console.print(render_table(make_study_table(result.summary, title)))
        self._console.print(f"took {format_duration(result.seconds)}; folder of the study:")
        self._console.print(str(result.path), soft_wrap=True)


def make_study_table(summary: dict[str, Any], title: str) -> PlainTable:
    """Return a row for each training, and below them the mean and the standard deviation between trainings."""
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
    """Return the metrics of a validation, as far as there are labels for them."""
    shown = (
        (epoch.val_mae, f"val MAE {epoch.val_mae:.2f} years  "),
        (epoch.val_in_bracket, f"val in bracket {epoch.val_in_bracket:.1%}  "),
        (epoch.val_accuracy, f"val accuracy {epoch.val_accuracy:.1%}  "),
    )
    return "".join(text for value, text in shown if value == value)


@app.command()
def train(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:ARGUMENT]", help="The backbone to train, see `agegen models`; timm:NAME for timm's."
        ),
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run folder. Default: runs/<model>-<time>.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.", show_default="model's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", show_default="model's")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="model's")] = None,
    age_balance: Annotated[
        float | None,
        typer.Option(help="How strongly an epoch favours rare ages, 0 to 1.", show_default="model's"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides the split, the weights and the order.", show_default="0")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.", show_default="auto")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="auto|fp32|bf16", help="Precision of matrix products.", show_default="auto")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that augment images.", show_default="by cores")
    ] = None,
    split_file: Annotated[Path | None, typer.Option(help="Use the split.csv of another run.")] = None,
    protocol: Protocol = None,
    cache_dir: CacheDir = None,
    save_every: Annotated[
        float | None, typer.Option(min=0, help="Seconds between saves of the state.", show_default="60")
    ] = None,
    detector: CropDetector = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|MODEL",
            help="Start from a run's weights or shipped ones; a third of rate and epochs.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=16, metavar="PIXELS", help="Side of the input, for backbones that take any (timm:NAME)."),
    ] = None,
    freeze: Annotated[
        bool | None,
        typer.Option("--freeze/--no-freeze", help="Compute a backbone's features once and train the heads alone."),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Begin with the weights that a backbone brings, or without."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="Cross-validate: train once for each of K leak-free folds.")
    ] = None,
    fold: Annotated[int | None, typer.Option(min=1, metavar="I", help="Of --folds, train the I-th alone.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Train N times, on one split, with other seeds.")
    ] = None,
    soft_labels: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Learn from teachers' out-of-fold estimates (--folds writes them), too."),
    ] = None,
    soft_weight: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="How much teachers count against labels, 0 to 1.", show_default="model's"),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="auto|loaders|device",
            help="Where pictures are augmented; auto is a GPU that has room for all of them.",
            show_default="auto",
        ),
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Let torch compile the network; pays off in long trainings.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="tensorboard", help="Write losses, metrics and faces for TensorBoard, too.")
    ] = None,
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run, with the options that it has.")
    ] = None,
) -> None:
    """Train a model; ends with its metrics on the test split and the run folder.

    Ctrl-C finishes the batch, saves, and says how to go on.

    Example: agegen train --model scratch --data data/utkface
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name not in _NOT_IN_CONFIG}
    given["data"] = data or None
    given["soft_labels"] = tuple(soft_labels) if soft_labels else None
    notices = make_notice_console()
    with show_work(notices):
        from agegen.batches.images import explain_loader_errors
        from agegen.data.loading import resolve_data
        from agegen.evaluate.study import is_study
        from agegen.machine import keep_freed_memory
        from agegen.render.progress import ProgressDisplay
        from agegen.train.config import TrainConfig, read_config
        from agegen.train.loop import BatchResult, EpochResult
        from agegen.train.study import StudyConfig, read_study, train_study
        from agegen.train.train import train_run

    if log not in (None, "tensorboard"):
        raise AgegenError("--log is tensorboard")
    config: TrainConfig | StudyConfig
    if fold is not None and folds is None and not is_study(resume):
        raise AgegenError("--fold I belongs to --folds K, or to --resume of such a study")
    if resume is not None and is_study(resume):
        if folds is not None or seeds is not None:
            raise AgegenError(f"{resume} knows its folds or seeds; leave --folds and --seeds out")
        config = read_study(resume, given, fold)
    elif resume is not None:
        if folds is not None or seeds is not None:
            raise AgegenError(f"{resume} is a single training; leave --folds and --seeds out")
        config = read_config(resume, given)
    elif model is None:
        raise AgegenError("give --model NAME (see `agegen models`), or --resume RUN")
    else:
        chosen = {name: value for name, value in given.items() if value is not None}
        config = TrainConfig(**(chosen | {"data": resolve_data(data)}))
        if folds is not None or seeds is not None:
            config = StudyConfig(config, folds, fold, seeds)
    # The process is this command's own: a library call must not change how all of it takes memory.
    keep_freed_memory()
    output = make_output_console()
    interrupts = _Interrupts(notices)
    with explain_loader_errors(), ProgressDisplay(output if output.is_terminal else notices) as progress:
        display = TrainDisplay(output, notices, progress)
        run = train_study if isinstance(config, StudyConfig) else train_run
        events: Iterator[StudyEvent] = run(config, progress, interrupts.pending)  # type: ignore[arg-type]
        if log is not None and read_rank() == 0:
            from agegen.train.tensorboard import log_events

            events = log_events(events)
        for event in events:
            # From its last epoch on a training saves nothing any more: Ctrl-C is what it always is.
            if isinstance(event, BatchResult):
                interrupts.catch()
            elif isinstance(event, EpochResult) and event.epoch == display.epochs:
                interrupts.release()
            display.show(event)
    shutdown_distributed()
