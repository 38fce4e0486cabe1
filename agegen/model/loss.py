"""The training loss: label distribution learning for ages, the likelihood of brackets, cross-entropy for gender."""

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
# Years by which σ grows with each year from the ends of the range: a child of one is told from one of three.
_EDGE_SLOPE = 0.5
# Whole years: a label of 29 stands for all until the next birthday, an estimate of 29.4 for 29.
_HALF_YEAR = 0.5


class Targets(NamedTuple):
    """What the loss compares with, for N faces: least and greatest age in years and female, (N,) float, NaN unknown.

    ``soft_ages`` (N, 117) and ``soft_female`` (N,) are what teachers estimate, NaN where none did; None without any.
    """

    low: Tensor
    high: Tensor
    female: Tensor
    soft_ages: Tensor | None = None
    soft_female: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """Return the same on a device."""
        soft = (None if part is None else part.to(device) for part in self[3:])
        return Targets(self.low.to(device), self.high.to(device), self.female.to(device), *soft)


def make_age_distribution(ages: Tensor, sigma: float = LossSettings.sigma) -> Tensor:
    """Return label distributions (N, 117) for exact ages (N,) in years; the mean of each is the age itself.

    Gaussians of σ ``sigma`` years, narrower towards 0 and 116, where a cut-off one would lead away from the age.
    Source: Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018.
    """
    table = torch.from_numpy(_tabulate_distributions(sigma)).to(ages.device)
    below = ages.floor().clamp(0, MAX_AGE - 1).long()
    share = (ages.float() - below)[:, None]
    # Mixed from those of two whole years, the mean of a fraction is exact too.
    return (1 - share) * table[below] + share * table[below + 1]


@lru_cache(maxsize=4)
def _tabulate_distributions(widest: float) -> NDArray[np.float32]:
    """Return the distributions (117, 117) of the whole years, tilted until their means are exact."""
    years = np.arange(AGE_CLASSES, dtype=np.float64)
    rows = np.eye(AGE_CLASSES)
    for age in range(1, MAX_AGE):
        sigma = min(widest, _EDGE_SLOPE * (1 + min(age, MAX_AGE - age)))
        centre = float(age)
        for _ in range(50):
            row = np.exp(-((years - centre) ** 2) / (2 * sigma**2))
            row /= row.sum()
            mean = float(row @ years)
            variance = max(float(row @ years**2) - mean**2, 1e-12)
            # Newton's step: the mean of an exponential family moves by variance over σ² with its centre.
            centre -= (mean - age) * sigma**2 / variance
        rows[age] = row
    return rows.astype(np.float32)


def find_known(targets: Targets) -> tuple[Tensor, Tensor]:
    """Return of which of N faces age and gender are known, (N,) each: from their labels or from teachers."""
    aged, gendered = ~torch.isnan(targets.low), ~torch.isnan(targets.female)
    if targets.soft_ages is not None and targets.soft_female is not None:
        aged = aged | ~torch.isnan(targets.soft_ages[:, 0])
        gendered = gendered | ~torch.isnan(targets.soft_female)
    return aged, gendered


def compute_loss(
    outputs: Outputs, targets: Targets, settings: LossSettings = DEFAULT_LOSS, counts: tuple[int, int] | None = None
) -> Tensor:
    """Return the mean loss of N faces, a scalar; labels that are missing take no part.

    ``counts``: of how many faces age and gender are known in a batch of which these are a part; then the losses of
    all parts add up to that of the batch.

    An exact age: DLDL-v2, the KL divergence to its label distribution and the L1 distance of the expectation.
    A bracket: the negative logarithm of the probability inside it (interval-censored data) and the distance of
    the expectation to it. Gender: binary cross-entropy. Where teachers estimate too, a share of the loss compares
    with them in the same way; where labels are missing, all of it (Hinton et al., "Distilling the Knowledge in a
    Neural Network", 2015).
    """
    logits, gender_logit = outputs.age_logits.float(), outputs.gender_logit.float()
    age = _compute_age_losses(logits, targets.low, targets.high, settings)
    gender = _compute_gender_losses(gender_logit, targets.female)
    if targets.soft_ages is not None and targets.soft_female is not None:
        taught = _compute_taught_losses(logits, targets.soft_ages, settings)
        age = _mix(age, targets.low, taught, targets.soft_ages[:, 0], settings.soft)
        taught = _compute_gender_losses(gender_logit, targets.soft_female)
        gender = _mix(gender, targets.female, taught, targets.soft_female, settings.soft)
    aged, gendered = find_known(targets)
    known_ages, known_genders = (None, None) if counts is None else counts
    return _average(age, aged, known_ages) + settings.gender * _average(gender, gendered, known_genders)


def _mix(own: Tensor, labels: Tensor, taught: Tensor, soft: Tensor, share: float) -> Tensor:
    """Return losses (N,) by labels and by teachers in one; where either is NaN, by the other."""
    both = (1 - share) * own + share * taught
    return torch.where(torch.isnan(soft), own, torch.where(torch.isnan(labels), taught, both))


def _compute_gender_losses(logit: Tensor, female: Tensor) -> Tensor:
    """Return the loss of each face's gender (N,); of those without one, anything finite."""
    return F.binary_cross_entropy_with_logits(logit, female.nan_to_num(0.5), reduction="none")


def _compute_taught_losses(logits: Tensor, ages: Tensor, settings: LossSettings) -> Tensor:
    """Return the loss of each face (N,) against a teacher's age distribution (N, 117)."""
    log_probabilities = F.log_softmax(logits, dim=1)
    known = ages.nan_to_num(1 / AGE_CLASSES)
    divergence = F.kl_div(log_probabilities, known, reduction="none").sum(dim=1)
    return divergence + settings.expectation * (expect_age(log_probabilities.exp()) - expect_age(known)).abs()


def _compute_age_losses(logits: Tensor, low: Tensor, high: Tensor, settings: LossSettings) -> Tensor:
    """Return the loss of each face's age (N,); of those without an age, anything finite."""
    exact = low == high
    log_probabilities = F.log_softmax(logits, dim=1)
    expectation = expect_age(log_probabilities.exp())
    ages = torch.where(exact, low, torch.zeros_like(low))
    wanted = make_age_distribution(ages, settings.sigma)
    divergence = F.kl_div(log_probabilities, wanted, reduction="none").sum(dim=1)
    years = torch.arange(AGE_CLASSES, device=logits.device)
    inside = (years >= low[:, None] - _HALF_YEAR) & (years <= high[:, None] + _HALF_YEAR)
    # Without an age no year is inside; the mask of the caller leaves such faces out, but a NaN would spread.
    inside = inside | torch.isnan(low)[:, None]
    censored = -torch.logsumexp(log_probabilities.masked_fill(~inside, -torch.inf), dim=1)
    margin = torch.where(exact, 0.0, _HALF_YEAR)
    below, above = (low - margin - expectation).clamp(min=0), (expectation - high - margin).clamp(min=0)
    distance = (below + above).nan_to_num(0.0)
    return torch.where(exact, divergence, censored) + settings.expectation * distance


def _average(losses: Tensor, known: Tensor, count: int | None) -> Tensor:
    # Counted where it lies: to bring it here would wait for the device.
    total = known.sum().clamp(min=1) if count is None else max(count, 1)
    return torch.where(known, losses, torch.zeros_like(losses)).sum() / total
