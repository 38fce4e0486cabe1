"""TensorBoard logs of a training, written to ``tensorboard/`` in its run folder from the training's events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from agegen.errors import AgegenError
from agegen.train.loop import BatchResult, EpochResult, StudyEvent, TrainResult, TrainStart

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
# The name in TensorBoard of each logged field of an EpochResult.
_EPOCH_FIELDS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "val/mae": "val_mae",
    "val/accuracy": "val_accuracy",
    "val/in_bracket": "val_in_bracket",
    "train/lr": "lr",
    "train/images_per_second": "images_per_second",
}


def log_events(events: Iterator[StudyEvent]) -> Iterator[StudyEvent]:
    """Pass on the events of a training or a study, and log them; each training of a study has its own log.

    Raises:
        AgegenError: the package tensorboard is not installed.
    """
    open_log = _import_writer()
    log: SummaryWriter | None = None
    try:
        for event in events:
            if isinstance(event, TrainStart):
                if log is not None:
                    log.close()
                log = open_log(str(event.run / FOLDER))
            elif log is not None:
                write_event(log, event)
            yield event
    finally:
        if log is not None:
            log.close()


def write_event(log: SummaryWriter, event: StudyEvent) -> None:
    """Log a batch's loss, an epoch's metrics, or the test metrics."""
    if isinstance(event, BatchResult):
        log.add_scalar("loss/batch", event.loss, (event.epoch - 1) * event.batches + event.batch)
    elif isinstance(event, EpochResult):
        write_scalars(log, {name: getattr(event, field) for name, field in _EPOCH_FIELDS.items()}, event.epoch)
    elif isinstance(event, TrainResult):
        write_scalars(log, make_test_metrics(event), event.best.epoch)


def write_scalars(log: SummaryWriter, values: dict[str, float], step: int) -> None:
    """Log values by name; NaN stands for a metric that the labels do not allow, and is left out."""
    for name, value in values.items():
        if value == value:
            log.add_scalar(name, value, step)


def make_test_metrics(result: TrainResult) -> dict[str, float]:
    """Return the test metrics of a finished training by their names in TensorBoard."""
    evaluation = result.evaluation
    return {
        "test/mae": evaluation.age.mae.value,
        "test/in_bracket": evaluation.bracket.in_bracket.value,
        "test/accuracy": evaluation.gender.accuracy.value,
        "test/coverage": evaluation.interval.coverage.value,
    }


def _import_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AgegenError('--log tensorboard requires tensorboard: pip install "agegen[tensorboard]"') from error
    return SummaryWriter
