"""Evaluate a cross-validation: for each face, the estimate of the training that did not see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
# Columns of out_of_fold.parquet that are no groups.
_OTHER_COLUMNS = ("path", "sha256", "age", "female", "fold", DISTRIBUTION, *AGE_BOUNDS, *ESTIMATE_COLUMNS)


@dataclass(frozen=True)
class StudyEvaluation:
    """The pooled metrics of a cross-validation, and the predictions behind them."""

    path: Path
    evaluation: Evaluation
    predictions: pd.DataFrame


def is_study(path: Path | None) -> bool:
    """Return whether a path is the folder of a study."""
    return path is not None and (path / STUDY_FILE).is_file()


def list_seed_runs(path: Path) -> list[Path]:
    """Return the run folders of a study of seeds in numeric order; none if the study is a cross-validation."""
    return sorted(path.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))


def evaluate_study(path: Path) -> StudyEvaluation:
    """Evaluate the out-of-fold estimates of a cross-validation.

    Each face has the age interval that its training gave; ``confident`` uses the mean of the trainings' thresholds. The
    baseline is the median age and the majority gender of all faces.

    Raises:
        CheckpointError: the study is not finished, or has no folds.
    """
    if not (path / OUT_OF_FOLD).is_file():
        raise CheckpointError(
            f"{path} has no out-of-fold estimates. If its folds are not all trained, continue with `agegen train "
            f"--resume {path}`; evaluate the runs of a study of seeds one by one, or with `agegen compare`."
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
        estimates, predictions, ["fold", *groups], compute_baseline(predictions), _average_thresholds(path), bounds
    )
    return StudyEvaluation(path, evaluation, predictions)


def _average_thresholds(path: Path) -> Calibration:
    """Return a calibration whose gender threshold is the mean of those of all folds; its intervals are not used."""
    runs = [RunFolder(folder) for folder in sorted(path.glob("fold-*")) if (folder / "run.json").is_file()]
    thresholds = [read_calibration(read_info(run.checkpoint).calibration).min_confidence for run in runs]
    return Calibration(UNCALIBRATED.interval_scale, UNCALIBRATED.coverage, float(np.mean(thresholds)), 0)
