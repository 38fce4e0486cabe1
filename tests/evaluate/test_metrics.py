import numpy as np
import pytest

from agegen.evaluate.metrics import (
    compute_gender_values,
    draw_bootstrap_weights,
    measure_age,
    measure_brackets,
    measure_gender,
    measure_intervals,
    resample,
    widen_brackets,
)


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
    assert metrics.brier.value == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)


def test_calibration_error_by_hand():
    p_female, female = np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False])
    values = compute_gender_values(p_female, female, np.ones((1, 4), dtype=np.int32))
    # Confidences 0.9, 0.6, 0.6, 0.8 fall in bins 13, 9, 9 and 12 of 15.
    assert values["ece"] == pytest.approx((0.1 + abs(-0.6 - 0.6) + 0.2) / 4)


def test_a_perfectly_calibrated_model_has_an_interval_down_to_zero():
    """The error of few faces is above 0 by chance, and resampling adds as much again: both are taken off."""
    inside, values, plain = 0, [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p_female = rng.uniform(0, 1, 500)
        female = rng.random(500) < p_female
        metric = measure_gender(p_female, female, samples=200).ece
        inside += metric.low <= metric.value <= metric.high
        values.append(metric.value)
        ones = np.ones((1, 500), dtype=np.int32)
        plain.append(compute_gender_values(p_female, female, ones)["ece"][0])
    assert inside == 40
    # It can't be below 0, and so isn't 0 on average; but it is far below what bins of some 60 faces give by chance.
    assert np.mean(values) < 0.6 * np.mean(plain)
    rng = np.random.default_rng(0)
    p_female = rng.uniform(0, 1, 4000)
    sure = np.where(p_female > 0.5, 0.99, 0.01)
    assert measure_gender(sure, rng.random(4000) < p_female).ece.value == pytest.approx(0.24, abs=0.03)


def test_shares_near_the_ends_have_a_width():
    """Wilson's interval, as scipy has it: 60 of 60 right are no proof of 100 %."""
    right = measure_gender(np.full(60, 0.9), np.ones(60, dtype=bool)).accuracy
    assert (right.value, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(60 / (60 + 1.959964**2), abs=1e-4)
    ages = measure_age(np.zeros(50), np.full(50, 20.0))
    assert (ages.cs5.value, ages.cs5.low) == (0.0, 0.0)
    assert ages.cs5.high > 0.05


def test_bracket_metrics_by_hand():
    low, high = np.array([0.0, 3.0, 3.0, 10.0, 70.0]), np.array([2.0, 9.0, 9.0, 19.0, 116.0])
    estimates = np.array([2.4, 2.0, 12.0, 25.0, 60.0])
    brackets = widen_brackets(low, high)
    assert brackets.near_low.tolist() == [0, 0, 0, 3, 10]
    assert brackets.near_high.tolist() == [9, 19, 19, 116, 116]
    metrics = measure_brackets(estimates, brackets)
    assert metrics.in_bracket.value == pytest.approx(1 / 5)
    assert metrics.near_bracket.value == pytest.approx(5 / 5)
    assert metrics.distance.value == pytest.approx((0 + 0.5 + 2.5 + 5.5 + 9.5) / 5)


def test_metrics_of_nothing_are_not_defined():
    nothing = np.empty(0)
    for metrics in (
        measure_age(nothing, nothing),
        measure_gender(nothing, nothing.astype(bool)),
        measure_brackets(nothing, widen_brackets(nothing, nothing)),
        measure_intervals(nothing, nothing, nothing),
    ):
        assert all(np.isnan([metric.value, metric.low, metric.high]).all() for metric in vars(metrics).values())


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
