"""Evaluate a trained run on a split of its own data, or on data that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.batches.sources import EVAL_VIEWS, SourceOptions, make_eval_source, scan_for
from agegen.data.labels import SPLITS, Baseline
from agegen.data.loading import load_records, resolve_data
from agegen.data.scan import ProgressHook, Scan, ignore_progress
from agegen.data.splits import apply_split, fingerprint_split, read_split, split_scan
from agegen.errors import AgegenError, DataError
from agegen.evaluate.evaluation import Evaluation, evaluate_source
from agegen.machine import choose_compute
from agegen.model.calibration import read_calibration
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import CheckpointInfo
from agegen.model.plugins import find_checkpoint
from agegen.runs import DEFAULT_ROOT, RunFolder, find_newest_run, list_finished_runs, open_run

if TYPE_CHECKING:
    import pandas as pd

SPLIT_CHOICES = (*SPLITS, "all")


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``agegen eval``; ``data`` None means the data that the run was trained on.

    ``model`` stands for the weights that ship for it, in place of a run.
    """

    run: Path | None = None
    model: str | None = None
    data: str | None = None
    split: str = "test"
    device: str = "auto"
    precision: str = "auto"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class EvalResult:
    """Metrics of a run or of shipped weights (``path``), the predictions behind them, what the user should know."""

    path: Path
    model: str
    source: str
    split: str
    evaluation: Evaluation
    predictions: pd.DataFrame
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a run, or weights without their run's folder (``run`` None)."""

    run: RunFolder | None
    checkpoint: Path
    data: str


def evaluate_run(config: EvalConfig, on_progress: ProgressHook = ignore_progress) -> EvalResult:
    """Evaluate a run's best checkpoint, or the weights that ship for a model.

    Raises:
        AgegenError: the run, its plugin or the data can't be used, or no face is in the split.
    """
    if config.split not in SPLIT_CHOICES:
        raise AgegenError(f"--split is one of {', '.join(SPLIT_CHOICES)}")
    subject = find_subject(config)
    info, model = load_checkpoint(subject.checkpoint)
    scan = scan_for(type(model.backbone), load_records(subject.data), on_progress)
    scan, names = locate_splits(scan, subject, info, config)
    chosen = np.ones(len(names), dtype=bool) if config.split == "all" else names == config.split
    if not chosen.any():
        raise DataError(f"no face of {subject.data} is in the split '{config.split}'")
    options = SourceOptions(
        choose_compute(config.device, config.precision), 0, views=EVAL_VIEWS, cache_dir=config.cache_dir
    )
    network, source = make_eval_source(model, scan, chosen, options, on_progress)
    calibration = read_calibration(info.calibration)
    baseline = Baseline(**info.training["baseline"])
    evaluation, predictions = evaluate_source(network, source, scan, chosen, baseline, calibration, options.compute)
    notices = tuple(_describe(scan, names[chosen], subject, config))
    path = subject.checkpoint if subject.run is None else subject.run.path
    return EvalResult(path, info.model, subject.data, config.split, evaluation, predictions, notices)


def find_subject(config: EvalConfig) -> _Subject:
    """Return what is to be evaluated, and on which data; where data is given and no run is there, shipped weights.

    Raises:
        AgegenError: it isn't there, or shipped weights are given no data.
    """
    if config.model is not None or (config.run is None and config.data is not None and not list_finished_runs()):
        checkpoint = find_checkpoint(config.model, config.run)
        return _Subject(None, checkpoint, resolve_data(config.data))
    run = open_run(config.run) if config.run is not None else find_newest_run()
    return _Subject(run, run.checkpoint, config.data or str(run.read()["data"]["source"]))


def locate_splits(
    scan: Scan, subject: _Subject, info: CheckpointInfo, config: EvalConfig
) -> tuple[Scan, NDArray[np.str_]]:
    """Return the pictures and the split of each, "" where it isn't known: the run's, else the data's own.

    Weights without their run's folder know their split by its fingerprint: the same data and seed give it again.

    Raises:
        DataError: one split is asked for, and the data has none.
    """
    if subject.run is not None and config.data is None:
        scan, rows = apply_split(scan, read_split(subject.run.split), "the run's split.csv")
        return scan, rows["split"].to_numpy(dtype=str)
    if subject.run is not None:
        split = read_split(subject.run.split)
    else:
        split = split_scan(scan, int(info.training.get("seed", 0)))
        if fingerprint_split(split) != info.training.get("split"):
            split = split[:0]
    own = dict(zip(split["sha256"], split["split"], strict=True))
    names = np.array([own.get(digest, "") for digest in scan.sha256], dtype=str)
    if config.split == "all" or (names != "").all():
        return scan, names
    if "split" in scan.records.frame.columns:
        return scan, scan.records.frame["split"].to_numpy(dtype=str)
    raise DataError(
        f"{subject.data} is not the data that the model was trained on and has no column 'split'; "
        "evaluate all of it with --split all"
    )


def _describe(scan: Scan, names: NDArray[np.str_], subject: _Subject, config: EvalConfig) -> list[str]:
    notices = []
    if subject.run is None and config.model is None:
        notices.append(f"there is no run under {DEFAULT_ROOT}/: these are the weights that ship ({subject.checkpoint})")
    if scan.records.excluded:
        first = scan.records.excluded[0]
        notices.append(
            f"{len(scan.records.excluded)} files or rows were left out, the first: {first.path} ({first.reason})"
        )
    seen = int((names == "train").sum())
    if seen and config.split != "train":
        notices.append(f"{seen} of the {len(names)} pictures were in the model's training split")
    if subject.run is None and (names == "").any():
        notices.append(
            "this is not the data that the model was trained on as a whole; whether it has pictures in common with "
            "it can't be told"
        )
    return notices
