"""Evaluate a trained run on a split of its own data, or on data that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.calibration import UNCALIBRATED, Calibration
from agegen.checkpoints import load_checkpoint
from agegen.data.records import SPLITS, load_records
from agegen.data.scan import ProgressHook, Scan, ignore_progress
from agegen.data.splits import apply_split, read_split
from agegen.devices import choose_compute
from agegen.errors import AgegenError, CheckpointError, DataError
from agegen.evaluation import Baseline, Evaluation
from agegen.predictions import evaluate_source
from agegen.runs import RunFolder, find_newest_run, open_run
from agegen.sources import EVAL_VIEWS, SourceOptions, make_eval_source, scan_for

if TYPE_CHECKING:
    import pandas as pd

SPLIT_CHOICES = (*SPLITS, "all")


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``agegen eval``; ``data`` None means the data that the run was trained on."""

    run: Path | None = None
    model: str | None = None
    data: str | None = None
    split: str = "test"
    device: str = "auto"
    precision: str = "auto"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class EvalResult:
    """Metrics of a run, the table of predictions behind them, and what the user should know."""

    run: Path
    model: str
    source: str
    split: str
    evaluation: Evaluation
    predictions: pd.DataFrame
    notices: tuple[str, ...]


def choose_run(run: Path | None, model: str | None) -> RunFolder:
    """Return the run that is meant: the one named, else the newest finished one.

    Raises:
        CheckpointError: there is none, or weights are asked for that don't ship.
    """
    if run is not None and model is not None:
        raise AgegenError("give either a run or --model, not both")
    if model is not None:
        raise CheckpointError(f"no weights ship with agegen for '{model}' yet; give a run instead")
    return open_run(run) if run is not None else find_newest_run()


def evaluate_run(config: EvalConfig, on_progress: ProgressHook = ignore_progress) -> EvalResult:
    """Evaluate a run's best checkpoint.

    Raises:
        AgegenError: the run, its plugin or the data can't be used, or no face is in the split.
    """
    if config.split not in SPLIT_CHOICES:
        raise AgegenError(f"--split is one of {', '.join(SPLIT_CHOICES)}")
    run = choose_run(config.run, config.model)
    record = run.read()
    info, model = load_checkpoint(run.checkpoint)
    data = config.data or str(record["data"]["source"])
    scan = scan_for(type(model.backbone), load_records(data), on_progress)
    split = read_split(run.split)
    scan, names = locate_splits(scan, split, config, data)
    chosen = np.ones(len(names), dtype=bool) if config.split == "all" else names == config.split
    if not chosen.any():
        raise DataError(f"no face of {data} is in the split '{config.split}'")
    options = SourceOptions(
        choose_compute(config.device, config.precision), 0, views=EVAL_VIEWS, cache_dir=config.cache_dir
    )
    network, source = make_eval_source(model, scan, chosen, options, on_progress)
    baseline = Baseline(**record["baseline"])
    calibration = Calibration.from_json(info.calibration) if info.calibration else UNCALIBRATED
    evaluation, predictions = evaluate_source(network, source, scan, chosen, baseline, calibration, options.compute)
    seen = predictions["sha256"].isin(split["sha256"][split["split"] == "train"])
    notices = tuple(_describe(scan, int(seen.sum()), len(seen), config))
    return EvalResult(run.path, info.model, data, config.split, evaluation, predictions, notices)


def locate_splits(scan: Scan, split: pd.DataFrame, config: EvalConfig, data: str) -> tuple[Scan, NDArray[np.str_]]:
    """Return the pictures and the split of each: the run's where they are its data, else their own."""
    if config.data is None:
        scan, rows = apply_split(scan, split, "the run's split.csv")
        return scan, rows["split"].to_numpy(dtype=str)
    own = dict(zip(split["sha256"], split["split"], strict=True))
    names = np.array([own.get(digest, "") for digest in scan.sha256])
    if config.split == "all" or (names != "").all():
        return scan, names
    if "split" in scan.records.frame.columns:
        return scan, scan.records.frame["split"].to_numpy(dtype=str)
    raise DataError(f"{data} is not the data of the run and has no column 'split'; evaluate all of it with --split all")


def _describe(scan: Scan, seen: int, count: int, config: EvalConfig) -> list[str]:
    notices = []
    if scan.records.excluded:
        first = scan.records.excluded[0]
        notices.append(
            f"{len(scan.records.excluded)} files or rows were left out, the first: {first.path} ({first.reason})"
        )
    if seen and config.split != "train":
        notices.append(f"{seen} of the {count} pictures were in the run's training split")
    return notices
