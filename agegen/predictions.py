"""Estimates beside labels: the table that a run folder keeps and comparisons read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agegen.calibration import Calibration, bound_ages
from agegen.data.batches import BatchSource
from agegen.data.scan import Scan
from agegen.devices import Compute
from agegen.errors import CheckpointError
from agegen.evaluation import Baseline, Estimates, Evaluation, estimate_batches, evaluate_estimates
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

ESTIMATE_COLUMNS = ("estimated_age", "age_low", "age_high", "p_female")


def evaluate_source(
    network: nn.Module,
    source: BatchSource,
    scan: Scan,
    chosen: NDArray[np.bool_],
    baseline: Baseline,
    calibration: Calibration,
    compute: Compute,
) -> tuple[Evaluation, pd.DataFrame]:
    """Run a network over a source, the pictures ``chosen`` (N,) of a scan; return metrics and predictions."""
    estimates = estimate_batches(network.to(compute.device), source, compute)
    frame = scan.records.frame[chosen].reset_index(drop=True)
    evaluation = evaluate_estimates(estimates, frame, scan.records.group_columns, baseline, calibration)
    return evaluation, make_predictions(estimates, frame, np.array(scan.sha256)[chosen], calibration)


def make_predictions(
    estimates: Estimates, frame: pd.DataFrame, sha256: NDArray[np.str_], calibration: Calibration
) -> pd.DataFrame:
    """Return one row per face: path, sha256, labels, group columns, and the four estimate columns."""
    kept = [name for name in frame.columns if name not in ("row", "split")]
    low, high = bound_ages(estimates.age, estimates.spread, calibration)
    return frame[kept].assign(
        sha256=sha256,
        estimated_age=estimates.age,
        age_low=low,
        age_high=high,
        p_female=estimates.p_female,
    )


def write_predictions(path: Path, predictions: pd.DataFrame) -> None:
    """Write the table as Parquet, or as CSV where the name ends so."""
    with replace_atomically(path) as temporary:
        if path.suffix.lower() == ".csv":
            predictions.to_csv(temporary, index=False)
        else:
            predictions.to_parquet(temporary, index=False)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read the table of a run folder.

    Raises:
        CheckpointError: it isn't there, is damaged or lacks a column.
    """
    import pandas as pd

    try:
        predictions = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from error
    missing = {"path", "sha256", "age", "female", *ESTIMATE_COLUMNS} - set(predictions.columns)
    if missing:
        raise CheckpointError(f"{path} lacks the column {sorted(missing)[0]}")
    return predictions
