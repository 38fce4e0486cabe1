"""TensorBoard's view of a training: what its events tell, written beside the run while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.data.images import RGB, resize_image
from agegen.data.loading import load_sources
from agegen.errors import AgegenError
from agegen.evaluate.config import EvalConfig
from agegen.evaluate.estimates import read_predictions
from agegen.evaluate.evaluate import find_subject, match_records
from agegen.model.metadata import read_info
from agegen.options import DEFAULT_READ_OPTIONS
from agegen.predict.annotation import draw_annotation
from agegen.predict.results import FacePrediction, PhotoPrediction, choose_gender
from agegen.runs import RunFolder
from agegen.train.loop import BatchResult, EpochResult, StudyEvent, TrainResult, TrainStart

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
# A row or two of faces, large enough to read their labels.
_FACES, _SIDE = 16, 200
_EPOCH = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "val/mae": "val_mae",
    "val/accuracy": "val_accuracy",
    "val/in_bracket": "val_in_bracket",
    "train/lr": "lr",
    "train/images_per_second": "images_per_second",
}


def log_events(events: Iterator[StudyEvent]) -> Iterator[StudyEvent]:
    """Pass a training's events on, and write them for TensorBoard into ``tensorboard/`` in its run folder.

    Raises:
        AgegenError: the package tensorboard isn't installed.
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
    """Write one event: a batch's loss, an epoch's metrics, at the end the test metrics and some faces."""
    if isinstance(event, BatchResult):
        step = (event.epoch - 1) * event.batches + event.batch
        log.add_scalar("loss/batch", event.loss, step)
    elif isinstance(event, EpochResult):
        for name, field in _EPOCH.items():
            value = getattr(event, field)
            # What the labels don't allow is NaN.
            if value == value:
                log.add_scalar(name, value, event.epoch)
    elif isinstance(event, TrainResult):
        for name, value in pick_test_metrics(event).items():
            log.add_scalar(f"test/{name}", value, event.best.epoch)
        for number, picture in enumerate(draw_samples(event.run)):
            log.add_image(f"test faces/{number:02d}", picture, event.best.epoch, dataformats="HWC")


def pick_test_metrics(result: TrainResult) -> dict[str, float]:
    """Return the test metrics of a finished training by their names, those that are numbers."""
    evaluation = result.evaluation
    found = {
        "mae": evaluation.age.mae.value,
        "in_bracket": evaluation.bracket.in_bracket.value,
        "accuracy": evaluation.gender.accuracy.value,
        "coverage": evaluation.interval.coverage.value,
    }
    return {name: value for name, value in found.items() if value == value}


def draw_samples(run: Path) -> list[RGB]:
    """Return some of the test faces (200, 200, 3), drawn evenly, each with its label and the estimate."""
    subject = find_subject(EvalConfig(run))
    folder = RunFolder(run)
    records, _ = match_records(
        load_sources(subject.data, DEFAULT_READ_OPTIONS.fill_from(folder.read())),
        subject,
        read_info(subject.checkpoint),
        None,
    )
    positions = {path: row for row, path in enumerate(records.frame["path"])}
    table = read_predictions(folder.predictions)
    chosen = table.iloc[np.unique(np.linspace(0, len(table) - 1, _FACES).astype(int))]
    pictures = []
    for row in chosen.to_dict("records"):
        face = FacePrediction(
            file="",
            status="ok",
            age=float(row["estimated_age"]),
            age_low=float(row["age_low"]),
            age_high=float(row["age_high"]),
            gender=choose_gender(float(row["p_female"]), 0.5),
            p_female=float(row["p_female"]),
        )
        image = resize_image(records.decode(positions[row["path"]]), _SIDE)
        pictures.append(draw_annotation(PhotoPrediction("", "ok", (face,), image=image)))
    return pictures


def _import_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AgegenError('--log tensorboard needs another package: pip install "agegen[tensorboard]"') from error
    return SummaryWriter
