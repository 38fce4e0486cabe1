"""Evaluate a trained run on a split of its own data, or on data that it never saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.batches.sources import EVAL_VIEWS, SourceOptions, make_eval_source, scan_for
from agegen.data.labels import SPLITS, Baseline, find_baseline
from agegen.data.loading import load_sources, resolve_data
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.records import FaceRecords
from agegen.data.scan import ProgressHook, Scan, ignore_progress
from agegen.data.splits import apply_split, find_seen, fingerprint_split, read_split, split_scan
from agegen.errors import AgegenError, DataError
from agegen.evaluate.evaluation import Evaluation, evaluate_source
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.detection import LargestFaceCropper
from agegen.faces.matching import LandmarkStats, make_crop_notices, match_crops, read_crop_boxes
from agegen.machine import choose_compute
from agegen.model.calibration import read_calibration
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import CheckpointInfo
from agegen.model.weights import find_checkpoint, is_hub_run
from agegen.runs import (
    DEFAULT_ROOT,
    RunFolder,
    find_newest_run,
    list_finished_runs,
    list_sources,
    open_run,
    stands_alone,
)

if TYPE_CHECKING:
    import pandas as pd

SPLIT_CHOICES = (*SPLITS, "all")
# Below it, the genders of at least so many faces are likelier exchanged than guessed: by chance, one set in a million.
_SWAPPED_ACCURACY, _SWAPPED_FACES = 0.3, 50


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``agegen eval``; no ``data`` means the data that the run was trained on.

    ``model`` stands for the weights that ship for it, in place of a run; ``weights`` names one of several.
    ``distributions``: whether the predictions hold P(age) too.
    """

    run: Path | None = None
    model: str | None = None
    data: tuple[str, ...] = ()
    split: str = "test"
    device: str = "auto"
    precision: str = "auto"
    cache_dir: Path | None = None
    reading: ReadOptions = DEFAULT_READ_OPTIONS
    detector: str | None = None
    weights: str | None = None
    distributions: bool = False


@dataclass(frozen=True)
class EvalResult:
    """Metrics of a run or of shipped weights (``path``), the predictions behind them, what the user should know.

    ``records`` are the data, to show faces of; ``teacher`` says who estimated. ``seen`` (n,) marks the faces that the
    training saw, or a near-duplicate of; all False where it can't be told.
    """

    path: Path
    model: str
    source: str
    split: str
    evaluation: Evaluation
    predictions: pd.DataFrame
    records: FaceRecords
    teacher: str
    notices: tuple[str, ...]
    seen: NDArray[np.bool_]


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a run, or weights without their run's folder (``run`` None), on which data."""

    run: RunFolder | None
    checkpoint: Path
    data: tuple[str, ...]
    own: bool

    @property
    def source(self) -> str:
        """The data in words."""
        return " + ".join(self.data)


@dataclass(frozen=True)
class _Origin:
    """What is known of each picture (N,): its ``split`` ("" unknown), and whether the training ``seen`` it."""

    split: NDArray[np.str_]
    seen: NDArray[np.bool_]
    told: bool


def evaluate_run(config: EvalConfig, on_progress: ProgressHook = ignore_progress) -> EvalResult:
    """Evaluate a run's best checkpoint, or the weights that ship for a model.

    Raises:
        AgegenError: the run, its plugin or the data can't be used, or no face is in the split.
    """
    if config.split not in SPLIT_CHOICES:
        raise AgegenError(f"--split is one of {', '.join(SPLIT_CHOICES)}")
    subject = find_subject(config)
    info, model = load_checkpoint(subject.checkpoint)
    reading = config.reading.fill_from(subject.run.read()) if subject.run and subject.own else config.reading
    records, cropping = match_records(load_sources(subject.data, reading), subject, info, config.detector)
    scan = scan_for(model.backbone, records, on_progress)
    scan, origin = locate_splits(scan, subject, info)
    chosen = choose_faces(scan, origin, subject, config)
    options = SourceOptions(
        choose_compute(config.device, config.precision), 0, views=EVAL_VIEWS, cache_dir=config.cache_dir
    )
    network, source = make_eval_source(model, scan, chosen, options, on_progress)
    calibration = read_calibration(info.calibration)
    baseline = read_baseline(info, scan)
    evaluation, predictions = evaluate_source(
        network, source, scan, chosen, baseline, calibration, options.compute, config.distributions
    )
    notices = [*cropping, *_describe_data(scan, subject, config), *_describe_origin(origin, chosen, subject, config)]
    if swapped := describe_swap(evaluation.gender.accuracy.value, evaluation.counts["gender"]):
        notices.append(swapped)
    path = subject.checkpoint if subject.run is None else subject.run.path
    seen = origin.seen[chosen]
    return EvalResult(
        path=path,
        model=info.model,
        source=subject.source,
        split=config.split,
        evaluation=evaluation,
        predictions=predictions,
        records=scan.records,
        teacher=name_teacher(info, subject, int(seen.sum())),
        notices=tuple(notices),
        seen=seen,
    )


def find_subject(config: EvalConfig) -> _Subject:
    """Return what is to be evaluated, and on which data; where data is given and no run is there, shipped weights.

    A run may be the file of a checkpoint that stands alone, or one on the Hub.

    Raises:
        AgegenError: it isn't there, or shipped weights are given no data.
    """
    # A checkpoint by itself, such as `agegen calibrate` writes, is evaluated as shipped weights are.
    alone = is_hub_run(config.run) or (config.run is not None and stands_alone(config.run))
    shipped = config.model is not None or config.weights is not None
    if alone or shipped or (config.run is None and config.data and not list_finished_runs()):
        checkpoint = find_checkpoint(config.model, config.run, config.weights)
        return _Subject(None, checkpoint, resolve_data(config.data), own=False)
    run = open_run(config.run) if config.run is not None else find_newest_run()
    return _Subject(run, run.checkpoint, config.data or list_sources(run.read()), own=not config.data)


def match_records(
    records: FaceRecords, subject: _Subject, info: CheckpointInfo, detector: str | None
) -> tuple[FaceRecords, list[str]]:
    """Return the records, cut as those that the model was trained on, and what the user should know of that.

    Cut by a detector where one is given; else as the model's run remembers, or as measured now.
    """
    contract = AlignmentTemplate.from_json(info.crop) if info.crop is not None else None
    remembered = subject.run.read() if subject.run is not None and subject.own else {}
    if chosen := detector or remembered.get("options", {}).get("detector"):
        return replace(records, cropper=LargestFaceCropper(chosen, contract)), []
    if remembered:
        return replace(records, trims=read_crop_boxes(remembered["data"].get("trims", {}))), []
    if records.drawn:
        return records, []
    if (known := read_crop_boxes(info.training.get("trims") or {})) and set(known) <= set(records.sources):
        return replace(records, trims=known), []
    surveys: list[LandmarkStats] = []
    trims = match_crops(records, contract or AlignmentTemplate(), surveys)
    notices = list(dict.fromkeys(notice for survey in surveys for notice in make_crop_notices(survey)))
    return replace(records, trims=trims if contract is not None else {}), notices


def locate_splits(scan: Scan, subject: _Subject, info: CheckpointInfo) -> tuple[Scan, _Origin]:
    """Return the pictures, and what is known of each: the run's split, and what its training saw.

    Weights without their run's folder know their split by its fingerprint: the same data and seed give it again.
    """
    told = True
    if subject.run is not None:
        split = read_split(subject.run.split)
        if subject.own:
            scan, split = apply_split(scan, split, "the run's split.csv")
    else:
        split = split_scan(scan, int(info.training.get("seed", 0)))
        if fingerprint_split(split) != info.training.get("split"):
            split, told = split[:0], False
    own = dict(zip(split["sha256"], split["split"], strict=True))
    names = np.array([own.get(digest, "") for digest in scan.sha256], dtype=str)
    seen = names == "train" if subject.own else find_seen(split, scan.sha256, scan.hashes)
    return scan, _Origin(names, seen, told)


def choose_faces(scan: Scan, origin: _Origin, subject: _Subject, config: EvalConfig) -> NDArray[np.bool_]:
    """Return which faces (N,) to evaluate: of the model's own split where all are in it, else of the data's own.

    Raises:
        DataError: one split is asked for, and the data has none; or no face is in it.
    """
    names = origin.split
    if config.split == "all":
        return np.ones(len(names), dtype=bool)
    if not (names != "").all():
        if "split" not in scan.records.frame.columns:
            raise DataError(
                f"{subject.source} is not the data that the model was trained on and has no column 'split'; "
                "evaluate all of it with --split all"
            )
        names = scan.records.frame["split"].to_numpy(dtype=str)
    chosen: NDArray[np.bool_] = names == config.split
    if not chosen.any():
        raise DataError(f"no face of {subject.source} is in the split '{config.split}'")
    return chosen


def name_teacher(info: CheckpointInfo, subject: _Subject, seen: int) -> str:
    """Return who estimated, for files of soft labels; ``seen``: how many of the faces it was trained on."""
    return f"{info.model} ({subject.checkpoint.name}){f', trained on {seen:,} of them' if seen else ''}"


def read_baseline(info: CheckpointInfo, scan: Scan) -> Baseline:
    """Return the baseline of the model's training, or of the data itself where the checkpoint doesn't tell."""
    try:
        return Baseline(**info.training["baseline"])
    except (KeyError, TypeError):
        return find_baseline(scan.records.frame)


def describe_swap(accuracy: float, faces: int) -> str | None:
    """Return a notice where genders look exchanged: right far less often than by chance."""
    if faces < _SWAPPED_FACES or not accuracy < _SWAPPED_ACCURACY:
        return None
    return (
        f"the genders of this data look swapped: only {accuracy:.1%} of {faces:,} are right; "
        "--gender-codes female,male reads codes the other way round"
    )


def _describe_data(scan: Scan, subject: _Subject, config: EvalConfig) -> list[str]:
    records = scan.records
    notices = list(records.notices)
    if records.layout and not subject.own:
        notices.append(f"data: {records.layout}, {len(records):,} faces")
    if subject.run is None and config.model is None and config.run is None:
        notices.append(f"there is no run under {DEFAULT_ROOT}/: these are the weights that ship ({subject.checkpoint})")
    if records.excluded:
        first = records.excluded[0]
        notices.append(f"{len(records.excluded)} files or rows were left out, the first: {first.path} ({first.reason})")
    if records.trims and not subject.own:
        parts = ", ".join(f"the middle {trim.side:.0%} of {Path(name).name}" for name, trim in records.trims.items())
        notices.append(f"cropped as the model's training data is: {parts}")
    if left := records.ungrouped_columns:
        notices.append(f"no groups are made of {', '.join(left)}: persons, or too many values")
    return notices


def _describe_origin(origin: _Origin, chosen: NDArray[np.bool_], subject: _Subject, config: EvalConfig) -> list[str]:
    notices = []
    seen = int(origin.seen[chosen].sum())
    if seen and not (subject.own and config.split == "train"):
        notices.append(
            f"{seen:,} of these {int(chosen.sum()):,} pictures, or near-duplicates of them, were in the model's "
            "training split"
        )
    if not origin.told:
        notices.append(
            "this is not the data that the model was trained on as a whole; whether it has pictures in common with "
            "it can't be told"
        )
    if config.split == "val" and (origin.split[chosen] == "val").all():
        notices.append(
            "the validation split chose the epoch, the intervals and the threshold for gender: numbers on it flatter"
        )
    return notices
