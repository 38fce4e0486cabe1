import pytest
import torch

from agegen.model.loss import compute_loss, make_age_distribution
from agegen.model.network import Outputs, expect_age


def test_label_distributions_sum_to_one_and_expect_the_age():
    targets = make_age_distribution(torch.tensor([5.0, 40.0, 110.0]))
    assert targets.shape == (3, 117)
    assert targets.sum(dim=1) == pytest.approx(torch.ones(3))
    assert expect_age(targets)[1] == pytest.approx(40.0, abs=1e-3)


def test_loss_is_lowest_at_the_labels():
    ages, female = torch.tensor([30.0, 60.0]), torch.tensor([0.0, 1.0])
    targets = make_age_distribution(ages)
    right = Outputs(targets.clamp_min(1e-30).log(), torch.tensor([-20.0, 20.0]))
    off_by_five = Outputs(make_age_distribution(ages + 5).clamp_min(1e-30).log(), right.gender_logit)
    wrong_gender = Outputs(right.age_logits, -right.gender_logit)
    assert compute_loss(right, targets, female) == pytest.approx(0.0, abs=1e-4)
    # KL between Gaussians 5 years apart, sigma 2: 25 / 8; plus 0.2 per year.
    assert compute_loss(off_by_five, targets, female) == pytest.approx(25 / 8 + 1.0, abs=0.01)
    assert compute_loss(wrong_gender, targets, female) == pytest.approx(40.0, abs=0.1)
