"""From a model and batches to estimates, and from estimates to metrics, groups and the baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agegen.batches.batch import BatchSource
from agegen.data.labels import SMALL_GROUP, Baseline, label_groups
from agegen.data.scan import Scan
from agegen.evaluate.estimates import Estimates, estimate_batches, make_predictions
from agegen.evaluate.metrics import (
    AgeMetrics,
    AnyMetrics,
    ConfidentMetrics,
    GenderMetrics,
    IntervalMetrics,
    Metric,
    measure_age,
    measure_confident,
    measure_gender,
    measure_intervals,
)
from agegen.machine import Compute
from agegen.model.calibration import Calibration, bound_ages

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics of one group; ``small`` marks fewer than 30 faces."""

    column: str
    value: str
    n: int
    small: bool
    age: AgeMetrics
    gender: GenderMetrics
    interval: IntervalMetrics


@dataclass(frozen=True)
class Evaluation:
    """All that ``agegen eval`` reports of N faces.

    ``min_confidence`` is the threshold, 0.5–1, of ``confident``.
    """

    n: int
    age: AgeMetrics
    gender: GenderMetrics
    interval: IntervalMetrics
    confident: ConfidentMetrics
    min_confidence: float
    groups: list[GroupMetrics]
    baseline: tuple[AgeMetrics, GenderMetrics]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form: each metric ``x`` with its interval ``x_ci95``; NaN is null."""
        return {
            "n": self.n,
            "age": flatten_metrics(self.age),
            "gender": flatten_metrics(self.gender),
            "interval": flatten_metrics(self.interval),
            "confident": {"min_confidence": self.min_confidence, **flatten_metrics(self.confident)},
            "groups": [
                {
                    "column": group.column,
                    "value": group.value,
                    "n": group.n,
                    "small": group.small,
                    "age": flatten_metrics(group.age),
                    "gender": flatten_metrics(group.gender),
                    "interval": flatten_metrics(group.interval),
                }
                for group in self.groups
            ],
            "baseline": {
                "age": flatten_metrics(self.baseline[0]),
                "gender": flatten_metrics(self.baseline[1]),
            },
        }


def evaluate_estimates(
    estimates: Estimates, frame: pd.DataFrame, groups: list[str], baseline: Baseline, calibration: Calibration
) -> Evaluation:
    """Compare estimates with the labels of ``frame`` (columns age, female and the group columns)."""
    ages = frame["age"].to_numpy(dtype=float)
    female = frame["female"].to_numpy(dtype=bool)
    constant_age = np.full(len(ages), baseline.age)
    constant_gender = np.full(len(ages), float(baseline.female))
    return Evaluation(
        n=len(ages),
        age=measure_age(estimates.age, ages),
        gender=measure_gender(estimates.p_female, female),
        interval=measure_intervals(*bound_ages(estimates.age, estimates.spread, calibration), ages),
        confident=measure_confident(estimates.p_female, female, calibration.min_confidence),
        min_confidence=calibration.min_confidence,
        groups=_measure_groups(estimates, frame, groups, calibration),
        baseline=(measure_age(constant_age, ages), measure_gender(constant_gender, female)),
    )


def flatten_metrics(metrics: AnyMetrics) -> dict[str, Any]:
    """Return {name: value, name_ci95: [low, high]} of metrics, rounded to 4 digits, NaN as null."""
    flat: dict[str, Any] = {}
    for name, metric in list_metrics(metrics):
        flat[name] = round_number(metric.value)
        interval = [round_number(metric.low), round_number(metric.high)]
        flat[f"{name}_ci95"] = None if interval[0] is None else interval
    return flat


def list_metrics(metrics: AnyMetrics) -> list[tuple[str, Metric]]:
    """Return (name, metric) pairs in their order."""
    return [(name, Metric(**value)) for name, value in asdict(metrics).items()]


def round_number(value: float) -> float | None:
    """Return a number rounded to 4 digits, None for NaN."""
    return None if np.isnan(value) else round(float(value), 4)


def _measure_groups(
    estimates: Estimates, frame: pd.DataFrame, groups: list[str], calibration: Calibration
) -> list[GroupMetrics]:
    low, high = bound_ages(estimates.age, estimates.spread, calibration)
    ages, female = frame["age"].to_numpy(dtype=float), frame["female"].to_numpy(dtype=bool)

    def measure(column: str, value: str, inside: NDArray[np.bool_]) -> GroupMetrics:
        n = int(inside.sum())
        return GroupMetrics(
            column=column,
            value=value,
            n=n,
            small=n < SMALL_GROUP,
            age=measure_age(estimates.age[inside], ages[inside]),
            gender=measure_gender(estimates.p_female[inside], female[inside]),
            interval=measure_intervals(low[inside], high[inside], ages[inside]),
        )

    rows = []
    for column, labels in label_groups(frame, groups).items():
        for value in labels.cat.categories:
            inside = (labels == value).to_numpy(dtype=bool)
            if inside.any():
                rows.append(measure(column, str(value), inside))
    return rows


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
