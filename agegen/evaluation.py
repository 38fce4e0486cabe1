"""From a model and batches to estimates, and from estimates to metrics, groups and the baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agegen.data.batches import BatchSource
from agegen.devices import Compute
from agegen.losses import compute_loss, make_age_distribution
from agegen.metrics import AgeMetrics, GenderMetrics, Metric, measure_age, measure_gender
from agegen.model import AGE_CLASSES, Outputs, expect_age

if TYPE_CHECKING:
    import pandas as pd

INTERVAL = 0.90
SMALL_GROUP = 30
_AGE_BANDS = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, AGE_CLASSES)


@dataclass(frozen=True)
class Estimates:
    """Estimates for N faces: ages and the bounds of their 90 % interval in years, P(female) 0–1.

    ``loss`` is the mean loss over the faces where labels were at hand, NaN elsewhere.
    """

    age: NDArray[np.float64]
    age_low: NDArray[np.float64]
    age_high: NDArray[np.float64]
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


@dataclass(frozen=True)
class Evaluation:
    """All that ``agegen eval`` reports of N faces."""

    n: int
    age: AgeMetrics
    gender: GenderMetrics
    groups: list[GroupMetrics]
    baseline: tuple[AgeMetrics, GenderMetrics]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form: each metric ``x`` with its interval ``x_ci95``; NaN is null."""
        return {
            "n": self.n,
            "age": flatten_metrics(self.age),
            "gender": flatten_metrics(self.gender),
            "groups": [
                {
                    "column": group.column,
                    "value": group.value,
                    "n": group.n,
                    "small": group.small,
                    "age": flatten_metrics(group.age),
                    "gender": flatten_metrics(group.gender),
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


def find_interval(age_probabilities: Tensor, share: float = INTERVAL) -> tuple[Tensor, Tensor]:
    """Return the bounds (N,), (N,) in years of the central interval with ``share`` of the distribution."""
    cumulative = age_probabilities.cumsum(dim=1)
    tail = (1 - share) / 2
    low = (cumulative < tail).sum(dim=1).float()
    high = (cumulative < 1 - tail).sum(dim=1).clamp(max=AGE_CLASSES - 1).float()
    return low, high


def run_views(network: nn.Module, views: list[Tensor], compute: Compute) -> list[Outputs]:
    """Return a network's outputs for each view of a batch; to be called in inference mode."""
    with compute.autocast():
        return [network(view.to(compute.device, non_blocking=True)) for view in views]


def estimate_batches(network: nn.Module, source: BatchSource, compute: Compute) -> Estimates:
    """Run a network (whole model on pictures, or heads on features) over labelled batches."""
    network.eval()
    columns: list[list[Tensor]] = [[], [], [], []]
    loss, count = 0.0, 0
    with torch.inference_mode():
        for batch in source.iterate(0):
            outputs = run_views(network, batch.views, compute)
            targets = make_age_distribution(batch.ages.to(compute.device))
            loss += float(compute_loss(outputs[0], targets, batch.female.to(compute.device))) * len(batch.ages)
            count += len(batch.ages)
            ages, p_female = average_outputs(outputs)
            for column, values in zip(columns, (expect_age(ages), *find_interval(ages), p_female), strict=True):
                column.append(values.cpu())
    age, low, high, female = (torch.cat(column).double().numpy() for column in columns)
    return Estimates(age, low, high, female, loss / max(count, 1))


def find_baseline(train: pd.DataFrame) -> Baseline:
    """Return the baseline of a training split (columns age, female)."""
    return Baseline(float(train["age"].median()), bool(train["female"].mean() >= 0.5))


def evaluate_estimates(estimates: Estimates, frame: pd.DataFrame, groups: list[str], baseline: Baseline) -> Evaluation:
    """Compare estimates with the labels of ``frame`` (columns age, female and the group columns)."""
    ages = frame["age"].to_numpy(dtype=float)
    female = frame["female"].to_numpy(dtype=bool)
    constant_age = np.full(len(ages), baseline.age)
    constant_gender = np.full(len(ages), float(baseline.female))
    return Evaluation(
        n=len(ages),
        age=measure_age(estimates.age, ages),
        gender=measure_gender(estimates.p_female, female),
        groups=_measure_groups(estimates, frame, groups),
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


def flatten_metrics(metrics: AgeMetrics | GenderMetrics) -> dict[str, Any]:
    """Return {name: value, name_ci95: [low, high]} of metrics, rounded to 4 digits, NaN as null."""
    flat: dict[str, Any] = {}
    for name, metric in list_metrics(metrics):
        flat[name] = round_number(metric.value)
        interval = [round_number(metric.low), round_number(metric.high)]
        flat[f"{name}_ci95"] = None if interval[0] is None else interval
    return flat


def list_metrics(metrics: AgeMetrics | GenderMetrics) -> list[tuple[str, Metric]]:
    """Return (name, metric) pairs in their order."""
    return [(name, Metric(**value)) for name, value in asdict(metrics).items()]


def round_number(value: float) -> float | None:
    """Return a number rounded to 4 digits, None for NaN."""
    return None if np.isnan(value) else round(float(value), 4)


def _measure_groups(estimates: Estimates, frame: pd.DataFrame, groups: list[str]) -> list[GroupMetrics]:
    rows = []
    for column, labels in label_groups(frame, groups).items():
        for value in labels.cat.categories:
            inside = (labels == value).to_numpy(dtype=bool)
            if inside.any():
                rows.append(_measure_group(column, str(value), inside, estimates, frame[inside]))
    return rows


def _measure_group(
    column: str, value: str, inside: NDArray[np.bool_], estimates: Estimates, frame: pd.DataFrame
) -> GroupMetrics:
    n = int(inside.sum())
    return GroupMetrics(
        column=column,
        value=value,
        n=n,
        small=n < SMALL_GROUP,
        age=measure_age(estimates.age[inside], frame["age"].to_numpy(dtype=float)),
        gender=measure_gender(estimates.p_female[inside], frame["female"].to_numpy(dtype=bool)),
    )
