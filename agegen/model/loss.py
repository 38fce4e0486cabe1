"""The training loss: age distributions, brackets of ages, gender, and distillation from soft labels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agegen.backbone import LossSettings
from agegen.data.labels import AGE_CLASSES, MAX_AGE
from agegen.model.network import Outputs, expect_age

DEFAULT_LOSS = LossSettings()
# Increase of σ per year of distance from both ends of the age range: a one-year-old looks different from a
# three-year-old.
_EDGE_SLOPE = 0.5
# Ages are completed years: the label 29 covers 29 up to the next birthday, and an estimate of 29.4 counts as 29.
_HALF_YEAR = 0.5


class Targets(NamedTuple):
    """The training targets of N faces.

    ``low`` and ``high`` are the bounds of the age in years and ``female`` is 0 or 1, (N,) float each, NaN if unknown.
    ``soft_ages`` (N, 117) and ``soft_female`` (N,) are soft labels, NaN for faces without; None if there are none.
    """

    low: Tensor
    high: Tensor
    female: Tensor
    soft_ages: Tensor | None = None
    soft_female: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """Return a copy on a device."""
        soft = (None if part is None else part.to(device) for part in self[3:])
        return Targets(self.low.to(device), self.high.to(device), self.female.to(device), *soft)


def compute_loss(
    outputs: Outputs, targets: Targets, settings: LossSettings = DEFAULT_LOSS, counts: tuple[int, int] | None = None
) -> Tensor:
    """Return the mean loss of N faces, a scalar; missing labels are excluded from the mean.

    ``counts``: the numbers of known ages and genders in a larger batch that these faces are a part of; the losses of
    all parts then add up to that of the batch.

    Exact ages: DLDL-v2, the KL divergence to the label distribution plus the L1 distance of the expected age.
    Brackets: the negative log probability of the bracket (interval-censored data) plus the distance of the expected
    age to it. Gender: binary cross-entropy. Soft labels: the same losses against the teacher's estimates, with the
    weight ``settings.soft``, or 1 for faces without a label (Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015).
    """
    logits, gender_logit = outputs.age_logits.float(), outputs.gender_logit.float()
    age = _compute_age_losses(logits, targets.low, targets.high, settings)
    gender = _compute_gender_losses(gender_logit, targets.female)
    if targets.soft_ages is not None and targets.soft_female is not None:
        soft_age = _compute_soft_age_losses(logits, targets.soft_ages, settings)
        age = _mix_losses(age, targets.low, soft_age, targets.soft_ages[:, 0], settings.soft)
        soft_gender = _compute_gender_losses(gender_logit, targets.soft_female)
        gender = _mix_losses(gender, targets.female, soft_gender, targets.soft_female, settings.soft)
    aged, gendered = find_known(targets)
    known_ages, known_genders = (None, None) if counts is None else counts
    return _average(age, aged, known_ages) + settings.gender * _average(gender, gendered, known_genders)


def find_known(targets: Targets) -> tuple[Tensor, Tensor]:
    """Return which of N faces have a target for age (N,) and for gender (N,): a label or a soft label."""
    aged, gendered = ~torch.isnan(targets.low), ~torch.isnan(targets.female)
    if targets.soft_ages is not None and targets.soft_female is not None:
        aged = aged | ~torch.isnan(targets.soft_ages[:, 0])
        gendered = gendered | ~torch.isnan(targets.soft_female)
    return aged, gendered


def _compute_age_losses(logits: Tensor, low: Tensor, high: Tensor, settings: LossSettings) -> Tensor:
    """Return the age loss of each face (N,); any finite value for faces without an age."""
    exact = low == high
    log_probabilities = F.log_softmax(logits, dim=1)
    expectation = expect_age(log_probabilities.exp())
    ages = torch.where(exact, low, torch.zeros_like(low))
    label_distributions = make_age_distribution(ages, settings.sigma)
    divergence = F.kl_div(log_probabilities, label_distributions, reduction="none").sum(dim=1)
    years = torch.arange(AGE_CLASSES, device=logits.device)
    inside = (years >= low[:, None] - _HALF_YEAR) & (years <= high[:, None] + _HALF_YEAR)
    # Without an age no year would be inside, and the loss would be infinite. The caller masks such faces, but their
    # gradient would still be NaN.
    inside = inside | torch.isnan(low)[:, None]
    censored = -torch.logsumexp(log_probabilities.masked_fill(~inside, -torch.inf), dim=1)
    margin = torch.where(exact, 0.0, _HALF_YEAR)
    below, above = (low - margin - expectation).clamp(min=0), (expectation - high - margin).clamp(min=0)
    distance = (below + above).nan_to_num(0.0)
    return torch.where(exact, divergence, censored) + settings.expectation * distance


def _compute_soft_age_losses(logits: Tensor, soft_ages: Tensor, settings: LossSettings) -> Tensor:
    """Return the loss of each face (N,) against its soft label (N, 117); any finite value for faces without one."""
    log_probabilities = F.log_softmax(logits, dim=1)
    known = soft_ages.nan_to_num(1 / AGE_CLASSES)
    divergence = F.kl_div(log_probabilities, known, reduction="none").sum(dim=1)
    return divergence + settings.expectation * (expect_age(log_probabilities.exp()) - expect_age(known)).abs()


def _compute_gender_losses(logit: Tensor, female: Tensor) -> Tensor:
    """Return the gender loss of each face (N,); any finite value for faces without a gender."""
    return F.binary_cross_entropy_with_logits(logit, female.nan_to_num(0.5), reduction="none")


def _mix_losses(hard: Tensor, labels: Tensor, soft: Tensor, soft_labels: Tensor, weight: float) -> Tensor:
    """Return the weighted sum (N,) of the losses by labels and by soft labels; where one label is NaN, the other."""
    both = (1 - weight) * hard + weight * soft
    return torch.where(torch.isnan(soft_labels), hard, torch.where(torch.isnan(labels), soft, both))


def _average(losses: Tensor, known: Tensor, count: int | None) -> Tensor:
    # Count on the device: a transfer to the CPU would wait for all queued operations.
    total = known.sum().clamp(min=1) if count is None else max(count, 1)
    return torch.where(known, losses, torch.zeros_like(losses)).sum() / total


def make_age_distribution(ages: Tensor, sigma: float = LossSettings.sigma) -> Tensor:
    """Return label distributions (N, 117) for exact ages (N,) in years; the mean of each distribution is its age.

    They are Gaussians with σ of ``sigma`` years, narrower towards 0 and 116, where a truncated Gaussian would have a
    different mean. Source: Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018.
    """
    table = torch.from_numpy(_tabulate_distributions(sigma)).to(ages.device)
    below = ages.floor().clamp(0, MAX_AGE - 1).long()
    fraction = (ages.float() - below)[:, None]
    # A mixture of the distributions of two whole years has the exact mean, too.
    return (1 - fraction) * table[below] + fraction * table[below + 1]


@lru_cache(maxsize=4)
def _tabulate_distributions(widest: float) -> NDArray[np.float32]:
    """Return the distributions (117, 117) of the whole years; their centers are adjusted to make the means exact."""
    years = np.arange(AGE_CLASSES, dtype=np.float64)
    rows = np.eye(AGE_CLASSES)
    for age in range(1, MAX_AGE):
        sigma = min(widest, _EDGE_SLOPE * (1 + min(age, MAX_AGE - age)))
        center = float(age)
        for _ in range(50):
            row = np.exp(-((years - center) ** 2) / (2 * sigma**2))
            row /= row.sum()
            mean = float(row @ years)
            variance = max(float(row @ years**2) - mean**2, 1e-12)
            # Newton's step: the derivative of an exponential family's mean by its center is variance / σ².
            center -= (mean - age) * sigma**2 / variance
        rows[age] = row
    return rows.astype(np.float32)
