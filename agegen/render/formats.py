"""Numbers as people write them: metrics, intervals, durations, sizes."""

from __future__ import annotations

import math
from typing import Any

METRIC_TITLES = {
    "mae": "MAE (years)",
    "rmse": "RMSE (years)",
    "cs3": "CS@3",
    "cs5": "CS@5",
    "cs10": "CS@10",
    "in_bracket": "in the bracket",
    "near_bracket": "in it or the next",
    "distance": "mean distance to it (years)",
    "coverage": "90 % interval covers",
    "width": "its mean width (years)",
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "ece": "calibration error",
    "brier": "Brier score",
    "named": "gender named",
    "named_accuracy": "accuracy where named",
}

# Kept as shares of 1, shown as per cent.
_SHARES = ("in_bracket", "near_bracket", "cs3", "cs5", "cs10", "accuracy", "ece", "coverage", "named", "named_accuracy")


def format_duration(seconds: float) -> str:
    """Return a duration in the two largest fitting units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_size(size: int) -> str:
    """Return a number of bytes in kB, MB or GB."""
    value: Any = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def format_bounds(name: str, low: float, high: float) -> str:
    """Return the bounds of a metric's interval, low–high, the unit once."""
    return f"{format_value(name, low).removesuffix(' %')}–{format_value(name, high)}"


def format_value(name: str, value: float | None) -> str:
    """Return a metric as people write it: shares as per cent, years with two digits."""
    if value is None or math.isnan(value):
        return "–"
    if name in _SHARES:
        return f"{value * 100:.1f} %"
    return f"{value:.4f}" if name in ("roc_auc", "brier") else f"{value:.2f}"
