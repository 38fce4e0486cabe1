"""Evaluate a cross-validation: the estimates of each face by the training that didn't see it, all together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.data.labels import AGE_BOUNDS, IDENTITY_COLUMNS, choose_groups, compute_baseline
from agegen.errors import CheckpointError
from agegen.evaluate.estimates import DISTRIBUTION, ESTIMATE_COLUMNS, Estimates, read_predictions
from agegen.evaluate.evaluation import Evaluation, evaluate_estimates
from agegen.model.calibration import UNCALIBRATED, Calibration, read_calibration
from agegen.model.metadata import read_info
from agegen.runs import STUDY_FILE, RunFolder

if TYPE_CHECKING:
    import pandas as pd

OUT_OF_FOLD = "out_of_fold.parquet"
_OTHER_COLUMNS = ("path", "sha256", "age", "female", "fold", DISTRIBUTION, *AGE_BOUNDS, *ESTIMATE_COLUMNS)


@dataclass(frozen=True)
class StudyEvaluation:
    """The pooled metrics of a cross-validation, and the table behind them."""

    path: Path
    evaluation: Evaluation
    predictions: pd.DataFrame


def is_study(path: Path | None) -> bool:
    """Return whether a path is the folder of a study."""
    return path is not None and (path / STUDY_FILE).is_file()


def list_seed_runs(path: Path) -> list[Path]:
    """Return the run folders of a study of seeds, by their numbers; none where it is one of folds."""
    return sorted(path.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))


def evaluate_study(path: Path) -> StudyEvaluation:
    """Evaluate the out-of-fold estimates of a cross-validation.

    Intervals are those that each training gave; ``confident`` has the mean of their thresholds. The baseline is the
    median age and the majority of all faces.

    Raises:
        CheckpointError: the study isn't whole yet, or is none of folds.
    """
    if not (path / OUT_OF_FOLD).is_file():
        raise CheckpointError(
            f"{path} has no out-of-fold estimates: its folds aren't all trained yet (`agegen train --resume {path}`), "
            "or it is a study of seeds, whose runs are evaluated one by one or by `agegen compare`"
        )
    predictions = read_predictions(path / OUT_OF_FOLD)
    columns = [str(name) for name in predictions.columns if name not in _OTHER_COLUMNS]
    groups = choose_groups(predictions, [name for name in columns if name.lower() not in IDENTITY_COLUMNS])[0]
    estimates = Estimates(
        predictions["estimated_age"].to_numpy(dtype=float),
        np.full(len(predictions), np.nan),
        predictions["p_female"].to_numpy(dtype=float),
    )
    bounds = (predictions["age_low"].to_numpy(dtype=float), predictions["age_high"].to_numpy(dtype=float))
    evaluation = evaluate_estimates(
        estimates, predictions, ["fold", *groups], compute_baseline(predictions), _average_threshold(path), bounds
    )
    return StudyEvaluation(path, evaluation, predictions)


def _average_threshold(path: Path) -> Calibration:
    """Return a calibration of which the threshold for gender counts: the mean of those of all folds."""
    runs = [RunFolder(folder) for folder in sorted(path.glob("fold-*")) if (folder / "run.json").is_file()]
    thresholds: list[Any] = [read_calibration(read_info(run.checkpoint).calibration).min_confidence for run in runs]
    return Calibration(UNCALIBRATED.interval_scale, UNCALIBRATED.coverage, float(np.mean(thresholds)), 0)
