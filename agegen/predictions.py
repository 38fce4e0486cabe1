"""The table of estimates beside labels that a run folder keeps and comparisons read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.errors import CheckpointError
from agegen.evaluation import Estimates
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

ESTIMATE_COLUMNS = ("estimated_age", "age_low", "age_high", "p_female")


def make_predictions(estimates: Estimates, frame: pd.DataFrame, sha256: NDArray[np.str_]) -> pd.DataFrame:
    """Return one row per face: path, sha256, labels, group columns, and the four estimate columns."""
    kept = [name for name in frame.columns if name not in ("row", "split")]
    return frame[kept].assign(
        sha256=sha256,
        estimated_age=estimates.age,
        age_low=estimates.age_low,
        age_high=estimates.age_high,
        p_female=estimates.p_female,
    )


def read_estimates(predictions: pd.DataFrame) -> Estimates:
    """Return the estimates of a table of predictions."""
    age, low, high, p_female = (predictions[name].to_numpy(dtype=float) for name in ESTIMATE_COLUMNS)
    return Estimates(age, low, high, p_female)


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
