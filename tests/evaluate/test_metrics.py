"""Metrics against values by hand and brute force, their intervals against theory, and the bootstrap's sharing."""

import numpy as np
import pytest

from agegen.evaluate import metrics as metrics_module
from agegen.evaluate.metrics import (
    define_age_metrics,
    define_bracket_metrics,
    define_confident_metrics,
    define_gender_metrics,
    define_interval_metrics,
    draw_bootstrap_weights,
    measure,
    measure_all,
    resample,
    resample_all,
    summarize,
    widen_brackets,
)


def brute_force_auc(p, female):
    wins = [(high > low) + 0.5 * (high == low) for high in p[female] for low in p[~female]]
    return float(np.mean(wins))


def draw_gender(n, seed=0):
    rng = np.random.default_rng(seed)
    p_female = rng.uniform(0, 1, n)
    return p_female, rng.random(n) < p_female


def test_age_metrics_by_hand():
    metrics = measure(define_age_metrics(np.array([20.0, 33.0, 40.0, 51.0]), np.array([20.0, 30.0, 46.0, 40.0])))
    assert metrics.mae.value == pytest.approx((0 + 3 + 6 + 11) / 4)
    assert metrics.bias.value == pytest.approx((0 + 3 - 6 + 11) / 4)
    assert metrics.rmse.value == pytest.approx(np.sqrt((9 + 36 + 121) / 4))
    assert (metrics.cs3.value, metrics.cs5.value, metrics.cs10.value) == (0.5, 0.5, 0.75)


def test_gender_metrics_by_hand():
    metrics = measure(define_gender_metrics(np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False])))
    assert metrics.accuracy.value == 0.5
    assert metrics.roc_auc.value == 0.75
    assert metrics.brier.value == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)


def test_calibration_error_by_hand():
    spec = define_gender_metrics(np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False]))
    # The confidences 0.9, 0.6, 0.6, 0.8 are in the bins 13, 9, 9 and 12 of 15.
    assert spec.functions["ece"](np.ones((1, 4))) == pytest.approx((0.1 + abs(-0.6 - 0.6) + 0.2) / 4)


def test_calibration_error_is_debiased():
    """By chance, the error on few faces is above 0, and resampling adds the same bias again: both are subtracted."""
    inside, values, plain = 0, [], []
    for seed in range(40):
        spec = define_gender_metrics(*draw_gender(500, seed))
        metric = measure(spec, samples=200).ece
        inside += metric.low <= metric.value <= metric.high
        values.append(metric.value)
        plain.append(spec.functions["ece"](np.ones((1, 500)))[0])
    assert inside == 40
    # It cannot be negative, so its mean is not 0; but it is far below the bias of bins with some 60 faces.
    assert np.mean(values) < 0.6 * np.mean(plain)
    p_female, female = draw_gender(4000)
    overconfident = np.where(p_female > 0.5, 0.99, 0.01)
    assert measure(define_gender_metrics(overconfident, female)).ece.value == pytest.approx(0.24, abs=0.03)


def test_intervals_of_shares_near_0_and_1_have_a_width():
    """Wilson's interval: 60 of 60 correct do not prove 100 %."""
    right = measure(define_gender_metrics(np.full(60, 0.9), np.ones(60, dtype=bool))).accuracy
    assert (right.value, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(60 / (60 + 1.959964**2), abs=1e-4)
    ages = measure(define_age_metrics(np.zeros(50), np.full(50, 20.0)))
    assert (ages.cs5.value, ages.cs5.low) == (0.0, 0.0)
    assert ages.cs5.high > 0.05


def test_accuracy_above_the_threshold_is_a_share_of_the_faces_above_it():
    p_female = np.array([0.9] * 40 + [0.6] * 60)
    metrics = measure(define_confident_metrics(p_female, np.ones(100, dtype=bool), 0.8))
    assert (metrics.named.value, metrics.named_accuracy.value) == (0.4, 1.0)
    assert metrics.named_accuracy.low == pytest.approx(40 / (40 + 1.959964**2), abs=1e-4)
    nobody = measure(define_confident_metrics(p_female, np.ones(100, dtype=bool), 0.95))
    assert nobody.named.value == 0
    assert np.isnan(nobody.named_accuracy.value)


def test_bracket_metrics_by_hand():
    low, high = np.array([0.0, 3.0, 3.0, 10.0, 70.0]), np.array([2.0, 9.0, 9.0, 19.0, 116.0])
    estimates = np.array([2.4, 2.0, 12.0, 25.0, 60.0])
    brackets = widen_brackets(low, high)
    assert brackets.near_low.tolist() == [0, 0, 0, 3, 10]
    assert brackets.near_high.tolist() == [9, 19, 19, 116, 116]
    metrics = measure(define_bracket_metrics(estimates, brackets))
    assert metrics.in_bracket.value == pytest.approx(1 / 5)
    assert metrics.near_bracket.value == pytest.approx(5 / 5)
    assert metrics.distance.value == pytest.approx((0 + 0.5 + 2.5 + 5.5 + 9.5) / 5)


def test_metrics_without_faces_are_undefined():
    nothing = np.empty(0)
    specs = [
        define_age_metrics(nothing, nothing),
        define_gender_metrics(nothing, nothing.astype(bool)),
        define_bracket_metrics(nothing, widen_brackets(nothing, nothing)),
        define_interval_metrics(nothing, nothing, nothing),
        define_confident_metrics(nothing, nothing.astype(bool), 0.7),
    ]
    for metrics in measure_all(specs):
        assert all(np.isnan([metric.value, metric.low, metric.high]).all() for metric in vars(metrics).values())


def test_roc_auc_agrees_with_counting_pairs_under_weights():
    rng = np.random.default_rng(0)
    p = rng.integers(0, 6, 40) / 6  # many ties
    female = rng.random(40) < 0.4
    weights = draw_bootstrap_weights(40, 5)
    found = define_gender_metrics(p, female).functions["roc_auc"](weights)
    wanted = [brute_force_auc(np.repeat(p, row), np.repeat(female, row)) for row in weights.astype(int)]
    assert found == pytest.approx(wanted)


def test_roc_auc_of_one_class_is_undefined():
    metrics = measure(define_gender_metrics(np.array([0.9, 0.6]), np.array([True, True])))
    assert np.isnan(metrics.roc_auc.value)
    assert np.isnan(metrics.roc_auc.low)


def test_interval_of_mae_agrees_with_theory():
    rng = np.random.default_rng(1)
    ages = rng.uniform(0, 100, 4000)
    error = np.abs(rng.normal(0, 5, 4000))
    metric = measure(define_age_metrics(ages + error, ages)).mae
    half = 1.96 * error.std() / np.sqrt(4000)
    assert metric.high - metric.low == pytest.approx(2 * half, rel=0.1)
    assert metric.low < metric.value < metric.high


def test_resampling_is_paired_and_does_not_depend_on_the_values():
    first = resample(50, {"draw": lambda weights: weights[:, 0]}, 20)
    second = resample(50, {"draw": lambda weights: weights[:, 0]}, 20)
    assert (first["draw"] == second["draw"]).all()
    assert (draw_bootstrap_weights(50, 20).sum(axis=1) == 50).all()


def test_weights_are_drawn_once_for_each_number_of_faces(monkeypatch):
    """Measured together, metrics are the same as one by one; in blocks they depend on the number of faces alone."""
    monkeypatch.setattr(metrics_module, "_BLOCK_CELLS", 300 * 250)
    p_female, female = draw_gender(300)
    ages = np.random.default_rng(1).uniform(0, 90, 300)
    specs = [
        define_age_metrics(ages + p_female, ages),
        define_gender_metrics(p_female, female),
        define_gender_metrics(p_female[:200], female[:200]),
        define_age_metrics(np.full(300, 40.0), ages),
    ]
    alone = [measure(spec) for spec in specs]
    drawn = []

    def draw(n, samples, seed):
        drawn.append((n, seed))
        return draw_bootstrap_weights(n, samples, seed)

    monkeypatch.setattr(metrics_module, "draw_bootstrap_weights", draw)
    assert measure_all(specs) == alone
    assert drawn == [(200, start) for start in range(0, 1000, 375)] + [(300, start) for start in range(0, 1000, 250)]


def test_shares_are_not_resampled():
    def fail_on_samples(weights):
        assert len(weights) == 1
        return weights.mean(axis=1)

    spec = define_interval_metrics(np.zeros(9), np.ones(9), np.ones(9))
    measure(metrics_module.MetricSpec(spec.result, 9, spec.functions | {"coverage": fail_on_samples}, spec.shares))


def test_numbers_are_those_of_the_plain_bootstrap():
    """Against the textbook: resample the faces themselves with the same draws, and compute each metric again."""
    p_female, female = draw_gender(120)
    ages = np.random.default_rng(1).uniform(0, 90, 120)
    estimates = ages + np.random.default_rng(2).normal(0, 8, 120)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 120, 120) for _ in range(1000)]
    mae = [np.abs(estimates[rows] - ages[rows]).mean() for rows in draws]
    auc = [brute_force_auc(p_female[rows], female[rows]) for rows in draws[:50]]
    age, gender = measure_all([define_age_metrics(estimates, ages), define_gender_metrics(p_female, female)])
    assert (age.mae.low, age.mae.high) == pytest.approx(tuple(np.percentile(mae, [2.5, 97.5])))
    spec = define_gender_metrics(p_female, female)
    samples = resample_all([(120, spec.functions)])[0]
    assert samples["roc_auc"][:50] == pytest.approx(auc)
    assert summarize(spec, samples) == gender
