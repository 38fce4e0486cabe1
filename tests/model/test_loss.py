"""The training loss against values that can be computed by hand."""

import math

import numpy as np
import pytest
import torch

from agegen.data.labels import AGE_CLASSES, MAX_AGE
from agegen.model.loss import DEFAULT_LOSS, Targets, compute_loss, make_age_distribution
from agegen.model.network import Outputs, compute_std, expect_age

NAN = math.nan


def make_targets(low, high, female):
    return Targets(*(torch.tensor(values, dtype=torch.float32) for values in (low, high, female)))


def make_outputs(distributions, logits):
    return Outputs(torch.as_tensor(distributions).clamp_min(1e-30).log(), torch.tensor(logits, dtype=torch.float32))


def test_the_mean_of_a_label_distribution_is_the_age():
    ages = torch.cat([torch.arange(AGE_CLASSES), torch.tensor([0.25, 1.5, 33.4, 115.9])]).float()
    targets = make_age_distribution(ages)
    assert targets.sum(dim=1) == pytest.approx(torch.ones(len(ages)), abs=1e-5)
    assert expect_age(targets) == pytest.approx(ages, abs=1e-3)
    assert (targets >= 0).all()


def test_label_distributions_are_narrower_at_the_ends():
    years = torch.arange(AGE_CLASSES).float()
    targets = make_age_distribution(years)
    std = ((targets * years**2).sum(dim=1) - years**2).clamp(min=0).sqrt()
    assert std[[0, 1, 2, 50, MAX_AGE]].tolist() == pytest.approx([0.0, 0.85, 1.33, 2.0, 0.0], abs=0.02)
    assert (std[:10].diff() > 0).all()


def test_loss_is_lowest_at_the_labels():
    ages = torch.tensor([30.0, 60.0])
    targets = make_targets([30, 60], [30, 60], [0, 1])
    right = make_outputs(make_age_distribution(ages), [-20.0, 20.0])
    off_by_five = make_outputs(make_age_distribution(ages + 5), [-20.0, 20.0])
    wrong_gender = Outputs(right.age_logits, -right.gender_logit)
    assert compute_loss(right, targets) == pytest.approx(0.0, abs=1e-4)
    # KL between Gaussians 5 years apart, sigma 2: 25 / 8; plus 0.2 per year.
    assert compute_loss(off_by_five, targets) == pytest.approx(25 / 8 + 1.0, abs=0.01)
    assert compute_loss(wrong_gender, targets) == pytest.approx(20 * DEFAULT_LOSS.gender, abs=0.1)


def test_the_loss_of_a_one_year_old_is_not_biased_towards_two():
    """The L1 term compares with the age, not with the mean of a truncated Gaussian, which is 1.78 for 1."""
    targets = make_targets([1], [1], [NAN])
    losses = {}
    for mean in (1.0, 1.4, 1.78):
        logits = make_age_distribution(torch.tensor([mean])).clamp_min(1e-30).log()
        losses[mean] = float(compute_loss(Outputs(logits, torch.zeros(1)), targets))
    assert losses[1.0] == pytest.approx(0.0, abs=1e-4)
    assert losses[1.0] < losses[1.4] < losses[1.78]


def test_a_bracket_costs_the_probability_outside_it():
    even = torch.zeros(1, AGE_CLASSES)
    even[0, 20:30] = 0.1
    targets = make_targets([20], [29], [NAN])
    assert compute_loss(make_outputs(even, [0.0]), targets) == pytest.approx(0.0, abs=1e-5)
    half = torch.zeros(1, AGE_CLASSES)
    half[0, 25], half[0, 45] = 0.5, 0.5
    # Half of the probability is inside, and the expected age of 35 is 5.5 years above 29.5.
    assert compute_loss(make_outputs(half, [0.0]), targets) == pytest.approx(math.log(2) + 0.2 * 5.5, abs=1e-4)


def test_missing_labels_do_not_affect_the_loss():
    rng = np.random.default_rng(0)
    outputs = Outputs(
        torch.tensor(rng.normal(size=(4, AGE_CLASSES)), dtype=torch.float32, requires_grad=True),
        torch.tensor(rng.normal(size=4), dtype=torch.float32, requires_grad=True),
    )
    mixed = make_targets([30, 20, NAN, 5], [30, 29, NAN, 5], [1, NAN, 0, 1])
    loss = compute_loss(outputs, mixed)
    loss.backward()
    assert outputs.age_logits.grad.isfinite().all()
    assert outputs.age_logits.grad[2].abs().sum() == 0
    assert outputs.gender_logit.grad[1] == 0
    parts = [[0, 3], [1], [0, 2, 3]]
    ages = [
        compute_loss(
            Outputs(outputs.age_logits[rows], outputs.gender_logit[rows]),
            Targets(mixed.low[rows], mixed.high[rows], torch.full((len(rows),), NAN)),
        )
        for rows in parts[:2]
    ]
    gender = compute_loss(
        Outputs(outputs.age_logits[parts[2]], outputs.gender_logit[parts[2]]),
        Targets(torch.full((3,), NAN), torch.full((3,), NAN), mixed.female[parts[2]]),
    )
    assert loss.item() == pytest.approx(((2 * ages[0] + ages[1]) / 3 + gender).item(), abs=1e-5)


def test_the_loss_of_a_batch_without_labels_is_zero():
    outputs = Outputs(torch.randn(2, AGE_CLASSES, requires_grad=True), torch.randn(2, requires_grad=True))
    loss = compute_loss(outputs, make_targets([NAN, NAN], [NAN, NAN], [NAN, NAN]))
    loss.backward()
    assert loss == 0
    assert (outputs.age_logits.grad == 0).all()


def test_spread_of_a_known_distribution():
    spread = compute_std(make_age_distribution(torch.tensor([40.0, 60.0])))
    assert spread.tolist() == pytest.approx([DEFAULT_LOSS.sigma, DEFAULT_LOSS.sigma], abs=0.05)
