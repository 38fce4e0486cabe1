"""The training loss: label distribution learning for age, cross-entropy for gender."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from agegen.data.labels import AGE_CLASSES
from agegen.model.network import Outputs, expect_age

# Chosen on the validation split of UTKFace; the loss of age in years is of order 5, its KL of order 1.
AGE_SIGMA = 2.0

EXPECTATION_WEIGHT = 0.2

GENDER_WEIGHT = 2.0


def make_age_distribution(ages: Tensor, sigma: float = AGE_SIGMA) -> Tensor:
    """Return Gaussian label distributions (N, 117) for ages (N,) in years; each row sums to 1.

    Source: Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018.
    """
    years = torch.arange(AGE_CLASSES, device=ages.device, dtype=torch.float32)
    squared = (years[None, :] - ages.float()[:, None]) ** 2
    return torch.softmax(-squared / (2 * sigma**2), dim=1)


def compute_loss(outputs: Outputs, age_targets: Tensor, female: Tensor) -> Tensor:
    """Return the mean loss of N faces, a scalar: DLDL-v2 (KL + L1 of the expectation) plus gender.

    Args:
        outputs: of the model.
        age_targets: label distributions (N, 117).
        female: labels (N,), 0.0 or 1.0.
    """
    log_probabilities = F.log_softmax(outputs.age_logits.float(), dim=1)
    divergence = F.kl_div(log_probabilities, age_targets, reduction="batchmean")
    expectation = expect_age(log_probabilities.exp())
    distance = (expectation - expect_age(age_targets)).abs().mean()
    gender = F.binary_cross_entropy_with_logits(outputs.gender_logit.float(), female)
    return divergence + EXPECTATION_WEIGHT * distance + GENDER_WEIGHT * gender
