"""What a training tells while it runs: its start, batches, epochs, notices and result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agegen.evaluate.evaluation import Evaluation


@dataclass(frozen=True)
class BatchResult:
    """One step: ``batch`` of ``batches`` (from 1) of ``epoch`` (from 1).

    ``waiting`` is the share, 0–1, of this epoch's time that went by in waiting for data.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    images_per_second: float
    waiting: float


@dataclass(frozen=True)
class EpochResult:
    """One epoch, counted from 1, validated with the averaged weights.

    Attributes:
        val_mae: years, of exact ages; NaN without any.
        val_accuracy: of gender, 0–1.
        val_in_bracket: the share, 0–1, of estimates in the brackets that label them; NaN without any.
        seconds: since the first step of the training, validation included.
        images_per_second: in training.
        best: whether this is the best epoch so far (lowest :func:`score_epoch`).
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_mae: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float
    best: bool
    val_in_bracket: float = math.nan


@dataclass(frozen=True)
class TrainStart:
    """What a training is about to do.

    Attributes:
        counts: faces in each split.
        parameters: all, and those that are trained.
        setting: device, precision and the like in words.
        notices: what the user should know of the data.
    """

    run: Path
    model: str
    counts: dict[str, int]
    parameters: tuple[int, int]
    epochs: int
    setting: str
    notices: tuple[str, ...]


@dataclass(frozen=True)
class TrainNotice:
    """What the user should know in the course of a training."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its run folder, best epoch, test metrics, and wall time in seconds."""

    run: Path
    model: str
    best: EpochResult
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True)
class PartStart:
    """The start of one training of a study: ``number`` (from 1) of ``count`` ``folds`` or ``seeds``."""

    run: Path
    number: int
    count: int
    kind: str


@dataclass(frozen=True)
class StudyResult:
    """A study that is whole: its folder, its summary as it was written, and wall time in seconds."""

    path: Path
    summary: dict[str, Any]
    seconds: float


TrainEvent = TrainStart | TrainNotice | BatchResult | EpochResult | TrainResult
StudyEvent = TrainEvent | PartStart | StudyResult
