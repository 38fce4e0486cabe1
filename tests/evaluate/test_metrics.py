import numpy as np
import pytest

from agegen.evaluate.metrics import compute_gender_values, draw_bootstrap_weights, measure_age, measure_gender, resample


def brute_force_auc(p, female):
    wins = [(high > low) + 0.5 * (high == low) for high in p[female] for low in p[~female]]
    return float(np.mean(wins))


def test_age_metrics_by_hand():
    metrics = measure_age(np.array([20.0, 33.0, 40.0, 51.0]), np.array([20.0, 30.0, 46.0, 40.0]))
    assert metrics.mae.value == pytest.approx((0 + 3 + 6 + 11) / 4)
    assert metrics.rmse.value == pytest.approx(np.sqrt((9 + 36 + 121) / 4))
    assert (metrics.cs3.value, metrics.cs5.value, metrics.cs10.value) == (0.5, 0.5, 0.75)


def test_gender_metrics_by_hand():
    metrics = measure_gender(np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False]))
    assert metrics.accuracy.value == 0.5
    assert metrics.roc_auc.value == 0.75
    # Confidences 0.9, 0.6, 0.6, 0.8 fall in bins 13, 9, 9 and 12 of 15.
    assert metrics.ece.value == pytest.approx((0.1 + abs(-0.6 - 0.6) + 0.2) / 4)


def test_roc_auc_agrees_with_counting_pairs_under_weights():
    rng = np.random.default_rng(0)
    p = rng.integers(0, 6, 40) / 6  # many ties
    female = rng.random(40) < 0.4
    weights = draw_bootstrap_weights(40, 5)
    found = compute_gender_values(p, female, weights)["roc_auc"]
    wanted = [brute_force_auc(np.repeat(p, row), np.repeat(female, row)) for row in weights]
    assert found == pytest.approx(wanted)


def test_roc_auc_of_one_class_is_undefined():
    metrics = measure_gender(np.array([0.9, 0.6]), np.array([True, True]))
    assert np.isnan(metrics.roc_auc.value)
    assert np.isnan(metrics.roc_auc.low)


def test_interval_of_mae_covers_what_theory_says():
    rng = np.random.default_rng(1)
    ages = rng.uniform(0, 100, 4000)
    error = np.abs(rng.normal(0, 5, 4000))
    metric = measure_age(ages + error, ages).mae
    half = 1.96 * error.std() / np.sqrt(4000)
    assert metric.high - metric.low == pytest.approx(2 * half, rel=0.1)
    assert metric.low < metric.value < metric.high


def test_resampling_is_paired_and_does_not_depend_on_the_values():
    first = resample(50, 20, lambda weights: {"draw": weights[:, 0].astype(float)})
    second = resample(50, 20, lambda weights: {"draw": weights[:, 0].astype(float)})
    assert (first["draw"] == second["draw"]).all()
    assert (draw_bootstrap_weights(50, 20).sum(axis=1) == 50).all()
