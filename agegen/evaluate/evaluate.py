"""Evaluate a model on the test set of its run, or on other data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.data.records import FaceRecords
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.errors import format_count, shorten
from agegen.evaluate.config import EvalConfig
from agegen.evaluate.evaluation import Evaluation, describe_swapped_genders, evaluate_faces
from agegen.evaluate.subject import EvaluationSubject, open_subject
from agegen.machine import choose_compute
from agegen.model.weights import DEFAULT_WEIGHTS, is_hub_run
from agegen.runs import DEFAULT_ROOT

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EvalResult:
    """The metrics of a model on n faces, and the predictions behind them.

    Attributes:
        path: the run folder, or the checkpoint of weights without one.
        name: a title for people: the name of the run's folder, of bundled weights, of a repository, or of a file.
        model: the name of the backbone.
        source: the names of the datasets, and ``split`` the part of them.
        predictions: a row per face; see :func:`agegen.evaluate.estimates.make_predictions`.
        records: of the data, to show images of.
        teacher: a description of the model for files of soft labels.
        notices: what the user should know about the data and its overlap with the training set.
        seen: whether the training has seen each face (n,) or a near-duplicate; all False if that is unknown.
    """

    path: Path
    name: str
    model: str
    source: str
    split: str
    evaluation: Evaluation
    predictions: pd.DataFrame
    records: FaceRecords
    teacher: str
    notices: tuple[str, ...]
    seen: NDArray[np.bool_]


def evaluate_run(config: EvalConfig, on_progress: ProgressHook = ignore_progress) -> EvalResult:
    """Evaluate a run's best checkpoint, or the bundled weights of a model.

    Raises:
        AgegenError: the run, its plugin or the data cannot be used, or no face is in the split.
    """
    compute = choose_compute(config.device, config.precision)
    subject = open_subject(
        config.data, config.run, config.model, config.weights, config.detector, config.reading, on_progress
    )
    chosen, left_out = subject.select_faces(config.split)
    estimates, _ = subject.estimate(chosen, compute, config.cache_dir, on_progress, config.distributions)
    evaluation, predictions = evaluate_faces(estimates, subject.scan, chosen, subject.baseline, subject.calibration)
    bundled_by_default = subject.run is None and config.model is None and config.run is None
    notices = [
        *subject.notices,
        *_describe_data(subject, bundled_by_default),
        *_describe_overlap(subject, chosen, left_out, config.split),
        *describe_swapped_genders(evaluation.gender.accuracy.value, evaluation.counts["gender"]),
    ]
    seen = subject.seen[chosen]
    return EvalResult(
        path=subject.path,
        name=_name_subject(config, subject),
        model=subject.info.model,
        source=subject.source,
        split=config.split,
        evaluation=evaluation,
        predictions=predictions,
        records=subject.scan.records,
        teacher=_format_teacher(subject, int(seen.sum())),
        notices=tuple(notices),
        seen=seen,
    )


def _name_subject(config: EvalConfig, subject: EvaluationSubject) -> str:
    if subject.run is not None:
        return subject.run.path.resolve().name
    if config.run is not None:
        return str(config.run).removeprefix("hf:").strip("/") if is_hub_run(config.run) else config.run.name
    return "/".join(part for part in (subject.info.model, config.weights) if part not in (None, DEFAULT_WEIGHTS))


def _describe_data(subject: EvaluationSubject, bundled_by_default: bool) -> list[str]:
    records = subject.scan.records
    notices = list(records.notices)
    if records.layout and not subject.own_data:
        notices.append(f"data: {records.layout}, {format_count(len(records), 'face')}")
    if bundled_by_default:
        notices.append(f"no run found under {DEFAULT_ROOT}/: using the bundled weights ({subject.checkpoint})")
    if records.excluded:
        first = records.excluded[0]
        count = format_count(len(records.excluded), "file or row", "files or rows")
        notices.append(f"{count} excluded, the first: {first.path} ({first.reason})")
    if records.trims and not subject.own_data:
        parts = ", ".join(
            f"the middle {100 * trim.side:.0f} % of {Path(name).name}" for name, trim in records.trims.items()
        )
        notices.append(f"images cropped to match the model's training data: {parts}")
    if not subject.calibration.knows_age:
        notices.append("the model was trained without ages: it is evaluated on genders alone")
    if skipped := records.ungrouped_columns:
        notices.append(
            f"no metrics by group for the columns {shorten(', '.join(skipped))}: they identify persons, have too many "
            "values, or are too many"
        )
    return notices


def _describe_overlap(subject: EvaluationSubject, chosen: NDArray[np.bool_], left_out: int, split: str) -> list[str]:
    notices = []
    if left_out:
        notices.append(
            f"{format_count(left_out, 'face')} left out: the model's training used them or near-duplicates of them; "
            "--split all includes them"
        )
    seen = int(subject.seen[chosen].sum())
    if seen and not (subject.own_data and split == "train"):
        notices.append(
            f"{seen:,} of these {int(chosen.sum()):,} faces, or near-duplicates of them, were in the model's training "
            "set (data leakage): the metrics are optimistic"
        )
    notices += subject.describe_overlap()
    if split == "val" and (subject.splits[chosen] == "val").all():
        notices.append(
            "the epoch, the age intervals and the gender threshold were chosen on the validation set: the metrics are "
            "optimistic"
        )
    return notices


def _format_teacher(subject: EvaluationSubject, seen: int) -> str:
    """Return a description of the model, for files of soft labels, and how many of the faces it was trained on."""
    trained = f", trained on {seen:,} of them" if seen else ""
    return f"{subject.info.model} ({subject.checkpoint.name}){trained}"
