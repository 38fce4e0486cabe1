"""Compare estimates with labels: overall metrics, metrics by group, and those of a constant baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agegen.batches.batch import EvalSource
from agegen.data.labels import SMALL_GROUP, Baseline, Labels, band_ages, drop_ages, label_groups, read_labels
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
    MetricSpec,
    define_age_metrics,
    define_bracket_metrics,
    define_confident_metrics,
    define_gender_metrics,
    define_interval_metrics,
    measure,
    measure_all,
    widen_brackets,
)
from agegen.machine import Compute
from agegen.model.calibration import Calibration, bound_ages, choose_thresholds

if TYPE_CHECKING:
    import pandas as pd

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]
# 50 guessed genders have an accuracy below 0.3 in one dataset of 1,000; more faces, even less often.
_SWAPPED_ACCURACY, _SWAPPED_FACES = 0.3, 50


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
    """Everything that ``agegen eval`` reports about N faces.

    Attributes:
        counts: faces with an exact ``age``, with a ``bracket``, with a ``gender``: the sample sizes of the metrics.
        min_confidence: the general gender threshold, 0.5–1, behind ``confident``; some estimated ages may have another.
        groups: by age band, gender and the dataset's own columns, then by estimated age.
        baseline: the metrics of always estimating the training set's median age and majority gender.
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
    """Run a network over a source, which holds the ``chosen`` (N,) faces of a scan; see :func:`evaluate_faces`.

    ``keep``: whether the predictions also contain the age distributions.
    """
    estimates = estimate_batches(network.to(compute.device), source, compute, keep=keep)
    return evaluate_faces(estimates, scan, chosen, baseline, calibration)


def evaluate_faces(
    estimates: Estimates, scan: Scan, chosen: NDArray[np.bool_], baseline: Baseline, calibration: Calibration
) -> tuple[Evaluation, pd.DataFrame]:
    """Return the evaluation of estimates of the ``chosen`` (N,) faces of a scan, and the table of predictions.

    Ages of a model that was trained without ages are NaN, and are not evaluated.
    """
    frame = scan.records.frame[chosen].reset_index(drop=True)
    labelled = frame
    if not calibration.knows_age:
        # A head that was never trained is not measured: its errors would look like those of a bad model.
        estimates = replace(estimates, age=np.full_like(estimates.age, np.nan), distributions=None)
        labelled = drop_ages(frame)
    evaluation = evaluate_estimates(estimates, labelled, scan.records.group_columns, baseline, calibration)
    return evaluation, make_predictions(estimates, frame, np.array(scan.sha256)[chosen], calibration)


def evaluate_estimates(
    estimates: Estimates,
    frame: pd.DataFrame,
    groups: list[str],
    baseline: Baseline,
    calibration: Calibration,
    bounds: Bounds | None = None,
) -> Evaluation:
    """Compare estimates with the labels of ``frame`` (see :class:`agegen.data.records.FaceRecords`).

    ``bounds``: of the age intervals (N,), (N,) in years; by default those that the calibration gives.
    """
    labels, every = read_labels(frame), np.ones(len(frame), dtype=bool)
    brackets = _make_brackets(labels)
    constant = replace(
        estimates, age=np.full(len(frame), baseline.age), p_female=np.full(len(frame), float(baseline.female))
    )
    faces, trivial = (
        _LabelledEstimates(
            made.age, made.p_female, labels, brackets, bounds or bound_ages(made.age, made.spread, calibration)
        )
        for made in (estimates, constant)
    )
    found = list(_iter_groups(estimates.age, frame, groups))
    overall, simple, *by_group = _measure_parts(
        [(faces, every), (trivial, every), *((faces, group.inside) for group in found)]
    )
    return Evaluation(
        n=len(frame),
        counts={
            "age": int(labels.exact.sum()),
            "bracket": int(labels.bracketed.sum()),
            "gender": int(labels.gendered.sum()),
        },
        **overall._asdict(),
        confident=_measure_confident(estimates, labels, calibration),
        min_confidence=calibration.min_confidence,
        groups=[_make_group_metrics(group, part) for group, part in zip(found, by_group, strict=True)],
        baseline=(simple.age, simple.bracket, simple.gender),
    )


def describe_swapped_genders(accuracy: float, faces: int) -> list[str]:
    """Return a notice if the gender labels look swapped: an accuracy (0–1) far below chance."""
    if faces < _SWAPPED_FACES or not accuracy < _SWAPPED_ACCURACY:
        return []
    return [
        f"the gender labels of this data look swapped: only {100 * accuracy:.1f} % of {faces:,} agree with the model. "
        "Read the codes the other way round with --gender-codes female,male."
    ]


@dataclass(frozen=True)
class _LabelledEstimates:
    """Estimates and labels of the same N faces; any subset of them can be measured."""

    age: NDArray[np.float64]
    p_female: NDArray[np.float64]
    labels: Labels
    brackets: Brackets
    bounds: Bounds

    def define_metrics(self, inside: NDArray[np.bool_]) -> list[MetricSpec[Any]]:
        """Return the metrics of the faces ``inside`` (N,), in the order of :class:`_PartMetrics`."""
        ages = self.labels.low.astype(float)
        exact, bracketed, gendered = (
            inside & known for known in (self.labels.exact, self.labels.bracketed, self.labels.gendered)
        )
        low, high = (bound[exact] for bound in self.bounds)
        return [
            define_age_metrics(self.age[exact], ages[exact]),
            define_bracket_metrics(self.age[bracketed], Brackets(*(part[bracketed] for part in self.brackets))),
            define_gender_metrics(self.p_female[gendered], self.labels.female[gendered] > 0.5),
            define_interval_metrics(low, high, ages[exact]),
        ]


class _PartMetrics(NamedTuple):
    age: AgeMetrics
    bracket: BracketMetrics
    gender: GenderMetrics
    interval: IntervalMetrics


def _measure_parts(parts: Sequence[tuple[_LabelledEstimates, NDArray[np.bool_]]]) -> list[_PartMetrics]:
    """Return the metrics of subsets of faces, all measured at once: equally large ones share the bootstrap's draws."""
    specs = [faces.define_metrics(inside) for faces, inside in parts]
    measured = iter(measure_all([spec for part in specs for spec in part]))
    return [_PartMetrics(*(next(measured) for _ in part)) for part in specs]


def _measure_confident(estimates: Estimates, labels: Labels, calibration: Calibration) -> ConfidentMetrics:
    known = labels.gendered
    thresholds = choose_thresholds(estimates.age, calibration)
    return measure(define_confident_metrics(estimates.p_female[known], labels.female[known] > 0.5, thresholds[known]))


def _make_brackets(labels: Labels) -> Brackets:
    """Return the labels' brackets (N,) with their neighbours; faces without a bracket keep their own bounds."""
    rows = np.flatnonzero(labels.bracketed)
    low, high = labels.low.astype(float), labels.high.astype(float)
    near_low, near_high = low.copy(), high.copy()
    near_low[rows], near_high[rows] = widen_brackets(low[rows], high[rows])[2:]
    return Brackets(low, high, near_low, near_high)


class _Group(NamedTuple):
    column: str
    value: str
    inside: NDArray[np.bool_]


def _iter_groups(estimated: NDArray[np.float64], frame: pd.DataFrame, columns: list[str]) -> Iterator[_Group]:
    """Yield each group that has faces: by label and by the given columns, then by estimated age (N,)."""
    for column, labels in {**label_groups(frame, columns), "estimated_age": band_ages(estimated, frame)}.items():
        for value in labels.cat.categories:
            inside = (labels == value).to_numpy(dtype=bool, na_value=False)
            if inside.any():
                yield _Group(column, str(value), inside)


def _make_group_metrics(group: _Group, metrics: _PartMetrics) -> GroupMetrics:
    n = int(group.inside.sum())
    return GroupMetrics(column=group.column, value=group.value, n=n, small=n < SMALL_GROUP, **metrics._asdict())
