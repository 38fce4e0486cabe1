"""From a model and batches to estimates, and from estimates to metrics, groups and the baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agegen.batches.batch import EvalSource
from agegen.data.labels import SMALL_GROUP, Baseline, Labels, band_ages, label_groups, read_labels
from agegen.data.scan import Scan
from agegen.evaluate.estimates import Estimates, estimate_batches, make_predictions
from agegen.evaluate.metrics import (
    AgeMetrics,
    AnyMetrics,
    BracketMetrics,
    Brackets,
    ConfidentMetrics,
    GenderMetrics,
    IntervalMetrics,
    Metric,
    measure_age,
    measure_brackets,
    measure_confident,
    measure_gender,
    measure_intervals,
    widen_brackets,
)
from agegen.machine import Compute
from agegen.model.calibration import Calibration, bound_ages, choose_thresholds

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
    bracket: BracketMetrics
    gender: GenderMetrics
    interval: IntervalMetrics


@dataclass(frozen=True)
class Evaluation:
    """All that ``agegen eval`` reports of N faces.

    Attributes:
        counts: faces with an exact ``age``, with a ``bracket``, with a ``gender``: what each metric stands on.
        min_confidence: the threshold, 0.5–1, of ``confident``; at some estimated ages another may count.
    """

    n: int
    counts: dict[str, int]
    age: AgeMetrics
    bracket: BracketMetrics
    gender: GenderMetrics
    interval: IntervalMetrics
    confident: ConfidentMetrics
    min_confidence: float
    groups: list[GroupMetrics]
    baseline: tuple[AgeMetrics, BracketMetrics, GenderMetrics]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form: each metric ``x`` with its interval ``x_ci95``; NaN is null."""
        return {
            "n": self.n,
            "counts": self.counts,
            "age": flatten_metrics(self.age),
            "bracket": flatten_metrics(self.bracket),
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
                    "bracket": flatten_metrics(group.bracket),
                    "gender": flatten_metrics(group.gender),
                    "interval": flatten_metrics(group.interval),
                }
                for group in self.groups
            ],
            "baseline": {
                "age": flatten_metrics(self.baseline[0]),
                "bracket": flatten_metrics(self.baseline[1]),
                "gender": flatten_metrics(self.baseline[2]),
            },
        }


@dataclass(frozen=True)
class _Judged:
    """Estimates beside the labels of the same faces, so that any part of them can be measured."""

    estimates: Estimates
    labels: Labels
    brackets: Brackets
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]]

    def measure_age(self, inside: NDArray[np.bool_]) -> AgeMetrics:
        rows = inside & self.labels.exact
        return measure_age(self.estimates.age[rows], self.labels.low[rows].astype(float))

    def measure_brackets(self, inside: NDArray[np.bool_]) -> BracketMetrics:
        rows = inside & self.labels.bracketed
        return measure_brackets(self.estimates.age[rows], Brackets(*(part[rows] for part in self.brackets)))

    def measure_gender(self, inside: NDArray[np.bool_]) -> GenderMetrics:
        rows = inside & self.labels.gendered
        return measure_gender(self.estimates.p_female[rows], self.labels.female[rows] > 0.5)

    def measure_intervals(self, inside: NDArray[np.bool_]) -> IntervalMetrics:
        rows = inside & self.labels.exact
        low, high = (bound[rows] for bound in self.bounds)
        return measure_intervals(low, high, self.labels.low[rows].astype(float))


def evaluate_estimates(
    estimates: Estimates,
    frame: pd.DataFrame,
    groups: list[str],
    baseline: Baseline,
    calibration: Calibration,
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Evaluation:
    """Compare estimates with the labels of ``frame`` (see :class:`agegen.data.records.FaceRecords`).

    ``bounds``: of the age intervals (N,), where they are known already; else the calibration gives them.
    """
    judged = _judge(estimates, frame, calibration)
    if bounds is not None:
        judged = replace(judged, bounds=bounds)
    labels, every = judged.labels, np.ones(len(frame), dtype=bool)
    constant = replace(
        estimates,
        age=np.full(len(frame), baseline.age),
        p_female=np.full(len(frame), float(baseline.female)),
    )
    trivial = _judge(constant, frame, calibration)
    known = labels.gendered
    thresholds = choose_thresholds(estimates.age, calibration)
    return Evaluation(
        n=len(frame),
        counts={
            "age": int(labels.exact.sum()),
            "bracket": int(labels.bracketed.sum()),
            "gender": int(known.sum()),
        },
        age=judged.measure_age(every),
        bracket=judged.measure_brackets(every),
        gender=judged.measure_gender(every),
        interval=judged.measure_intervals(every),
        confident=measure_confident(estimates.p_female[known], labels.female[known] > 0.5, thresholds[known]),
        min_confidence=calibration.min_confidence,
        groups=_measure_groups(judged, frame, groups),
        baseline=(trivial.measure_age(every), trivial.measure_brackets(every), trivial.measure_gender(every)),
    )


def _judge(estimates: Estimates, frame: pd.DataFrame, calibration: Calibration) -> _Judged:
    labels = read_labels(frame)
    rows = np.flatnonzero(labels.bracketed)
    low, high = labels.low.astype(float), labels.high.astype(float)
    near_low, near_high = low.copy(), high.copy()
    near_low[rows], near_high[rows] = widen_brackets(low[rows], high[rows])[2:]
    bounds = bound_ages(estimates.age, estimates.spread, calibration)
    return _Judged(estimates, labels, Brackets(low, high, near_low, near_high), bounds)


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


def evaluate_source(
    network: nn.Module,
    source: EvalSource,
    scan: Scan,
    chosen: NDArray[np.bool_],
    baseline: Baseline,
    calibration: Calibration,
    compute: Compute,
    keep: bool = False,
) -> tuple[Evaluation, pd.DataFrame]:
    """Run a network over a source, the pictures ``chosen`` (N,) of a scan; return metrics and predictions.

    ``keep``: whether the predictions have the age distributions too.
    """
    estimates = estimate_batches(network.to(compute.device), source, compute, keep=keep)
    frame = scan.records.frame[chosen].reset_index(drop=True)
    evaluation = evaluate_estimates(estimates, frame, scan.records.group_columns, baseline, calibration)
    return evaluation, make_predictions(estimates, frame, np.array(scan.sha256)[chosen], calibration)


def _measure_groups(judged: _Judged, frame: pd.DataFrame, groups: list[str]) -> list[GroupMetrics]:
    rows = []
    estimated = band_ages(judged.estimates.age, frame)
    for column, labels in {**label_groups(frame, groups), "estimated_age": estimated}.items():
        for value in labels.cat.categories:
            inside = (labels == value).to_numpy(dtype=bool, na_value=False)
            if n := int(inside.sum()):
                rows.append(
                    GroupMetrics(
                        column=column,
                        value=str(value),
                        n=n,
                        small=n < SMALL_GROUP,
                        age=judged.measure_age(inside),
                        bracket=judged.measure_brackets(inside),
                        gender=judged.measure_gender(inside),
                        interval=judged.measure_intervals(inside),
                    )
                )
    return rows
