"""From a model and batches to estimates, and from estimates to metrics, groups and the baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agegen.calibration import Calibration, bound_ages
from agegen.data.batches import BatchSource
from agegen.devices import Compute
from agegen.losses import compute_loss, make_age_distribution
from agegen.metrics import (
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
from agegen.model import Outputs, expect_age
from agegen.specs import AGE_CLASSES

if TYPE_CHECKING:
    import pandas as pd

SMALL_GROUP = 30
_AGE_BANDS = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, AGE_CLASSES)


@dataclass(frozen=True)
class Estimates:
    """Estimates for N faces: ages and the spread (standard deviation) of each age distribution in years,
    P(female) 0–1.

    ``loss`` is the mean loss over the faces where labels were at hand, NaN elsewhere.
    """

    age: NDArray[np.float64]
    spread: NDArray[np.float64]
    p_female: NDArray[np.float64]
    loss: float = float("nan")


@dataclass(frozen=True)
class Baseline:
    """What one would say without looking: the training split's median age and majority gender."""

    age: float
    female: bool


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


def average_outputs(views: list[Outputs]) -> tuple[Tensor, Tensor]:
    """Return the age distributions (N, 117) and P(female) (N,), averaged over the views of N faces."""
    ages = torch.stack([torch.softmax(view.age_logits.float(), dim=1) for view in views])
    genders = torch.stack([torch.sigmoid(view.gender_logit.float()) for view in views])
    return ages.mean(dim=0), genders.mean(dim=0)


def measure_spread(age_probabilities: Tensor) -> Tensor:
    """Return the standard deviation in years (N,) of age distributions (N, 117)."""
    years = torch.arange(age_probabilities.shape[1], device=age_probabilities.device, dtype=age_probabilities.dtype)
    variance = (age_probabilities * years**2).sum(dim=1) - expect_age(age_probabilities) ** 2
    return variance.clamp(min=0).sqrt()


def run_views(network: nn.Module, views: list[Tensor], compute: Compute) -> list[Outputs]:
    """Return a network's outputs for each view of a batch; to be called in inference mode."""
    with compute.autocast():
        return [network(view.to(compute.device, non_blocking=True)) for view in views]


def estimate_batches(network: nn.Module, source: BatchSource, compute: Compute) -> Estimates:
    """Run a network (whole model on pictures, or heads on features) over labelled batches."""
    network.eval()
    columns: list[list[Tensor]] = [[], [], []]
    loss, count = 0.0, 0
    with torch.inference_mode():
        for batch in source.iterate(0):
            outputs = run_views(network, batch.views, compute)
            targets = make_age_distribution(batch.ages.to(compute.device))
            loss += float(compute_loss(outputs[0], targets, batch.female.to(compute.device))) * len(batch.ages)
            count += len(batch.ages)
            ages, p_female = average_outputs(outputs)
            for column, values in zip(columns, (expect_age(ages), measure_spread(ages), p_female), strict=True):
                column.append(values.cpu())
    age, spread, p_female_all = (torch.cat(column).double().numpy() for column in columns)
    return Estimates(age, spread, p_female_all, loss / max(count, 1))


def find_baseline(train: pd.DataFrame) -> Baseline:
    """Return the baseline of a training split (columns age, female)."""
    return Baseline(float(train["age"].median()), bool(train["female"].mean() >= 0.5))


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


def label_groups(frame: pd.DataFrame, groups: list[str]) -> dict[str, pd.Series]:
    """Return each grouping's label per face: age band, gender, then the data's own columns."""
    import pandas as pd

    names = [f"{low}–{high - 1}" for low, high in pairwise(_AGE_BANDS)]
    bands = pd.cut(frame["age"], _AGE_BANDS, right=False, labels=names)
    gender = frame["female"].map({True: "female", False: "male"}).astype("category")
    own = {name: frame[name].astype(str).astype("category") for name in groups}
    return {"age_band": bands, "gender": gender, **own}


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
