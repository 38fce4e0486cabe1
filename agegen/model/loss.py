"""The training loss: label distribution learning for ages, the likelihood of brackets, cross-entropy for gender."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agegen.data.labels import AGE_CLASSES, MAX_AGE
from agegen.model.network import Outputs, expect_age

# Chosen on the validation split of UTKFace; the loss of age in years is of order 5, its KL of order 1.
AGE_SIGMA = 2.0
EXPECTATION_WEIGHT = 0.2
GENDER_WEIGHT = 2.0
# Years by which σ grows with each year from the ends of the range: a child of one is told from one of three.
_EDGE_SLOPE = 0.5
# Whole years: a label of 29 stands for all until the next birthday, an estimate of 29.4 for 29.
_HALF_YEAR = 0.5


class Targets(NamedTuple):
    """What the loss compares with, for N faces: least and greatest age in years and female, (N,) float, NaN unknown."""

    low: Tensor
    high: Tensor
    female: Tensor


def make_age_distribution(ages: Tensor) -> Tensor:
    """Return label distributions (N, 117) for exact ages (N,) in years; the mean of each is the age itself.

    Gaussians of σ 2 years, narrower towards 0 and 116, where a cut-off one would lead away from the age.
    Source: Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018.
    """
    table = torch.from_numpy(_tabulate_distributions()).to(ages.device)
    below = ages.floor().clamp(0, MAX_AGE - 1).long()
    share = (ages.float() - below)[:, None]
    # Mixed from those of two whole years, the mean of a fraction is exact too.
    return (1 - share) * table[below] + share * table[below + 1]


@lru_cache(maxsize=1)
def _tabulate_distributions() -> NDArray[np.float32]:
    """Return the distributions (117, 117) of the whole years, tilted until their means are exact."""
    years = np.arange(AGE_CLASSES, dtype=np.float64)
    rows = np.eye(AGE_CLASSES)
    for age in range(1, MAX_AGE):
        sigma = min(AGE_SIGMA, _EDGE_SLOPE * (1 + min(age, MAX_AGE - age)))
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


def compute_loss(outputs: Outputs, targets: Targets) -> Tensor:
    """Return the mean loss of N faces, a scalar; labels that are missing take no part.

    An exact age: DLDL-v2, the KL divergence to its label distribution and the L1 distance of the expectation.
    A bracket: the negative logarithm of the probability inside it (interval-censored data) and the distance of
    the expectation to it. Gender: binary cross-entropy.
    """
    age = _compute_age_losses(outputs.age_logits.float(), targets.low, targets.high)
    known = ~torch.isnan(targets.female)
    gender = F.binary_cross_entropy_with_logits(
        outputs.gender_logit.float(), targets.female.nan_to_num(0.5), reduction="none"
    )
    return _average(age, ~torch.isnan(targets.low)) + GENDER_WEIGHT * _average(gender, known)


def _compute_age_losses(logits: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the loss of each face's age (N,); of those without an age, anything finite."""
    exact = low == high
    log_probabilities = F.log_softmax(logits, dim=1)
    expectation = expect_age(log_probabilities.exp())
    ages = torch.where(exact, low, torch.zeros_like(low))
    divergence = F.kl_div(log_probabilities, make_age_distribution(ages), reduction="none").sum(dim=1)
    years = torch.arange(AGE_CLASSES, device=logits.device)
    inside = (years >= low[:, None] - _HALF_YEAR) & (years <= high[:, None] + _HALF_YEAR)
    # Without an age no year is inside; the mask of the caller leaves such faces out, but a NaN would spread.
    inside = inside | torch.isnan(low)[:, None]
    censored = -torch.logsumexp(log_probabilities.masked_fill(~inside, -torch.inf), dim=1)
    margin = torch.where(exact, 0.0, _HALF_YEAR)
    below, above = (low - margin - expectation).clamp(min=0), (expectation - high - margin).clamp(min=0)
    distance = (below + above).nan_to_num(0.0)
    return torch.where(exact, divergence, censored) + EXPECTATION_WEIGHT * distance


def _average(losses: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, losses, torch.zeros_like(losses)).sum() / known.sum().clamp(min=1)
