import numpy as np
import pytest

from agegen.data.labels import Labels
from agegen.errors import CheckpointError
from agegen.model.calibration import (
    BRACKETS,
    EXACT,
    LEAST_NAMED,
    UNCALIBRATED,
    WANTED_ACCURACY,
    Calibration,
    bound_ages,
    calibrate,
    choose_min_confidence,
)


def draw_faces(n, seed, overconfidence=3.0):
    """Return estimates whose true spread is ``overconfidence`` times the one that they claim."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(20, 80, n)
    spread = rng.uniform(1, 5, n)
    age = true + rng.normal(0, overconfidence * spread)
    p_female = rng.uniform(0, 1, n)
    female = rng.uniform(0, 1, n) < p_female
    return age, spread, p_female, Labels(true, true, female.astype(float))


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_intervals_cover_what_they_promise_on_new_faces(overconfidence):
    calibration = calibrate(*draw_faces(2000, 0, overconfidence))
    age, spread, _, labels = draw_faces(5000, 1, overconfidence)
    low, high = bound_ages(age, spread, calibration)
    assert ((low <= labels.low) & (labels.low <= high)).mean() == pytest.approx(0.9, abs=0.02)
    assert (calibration.faces, calibration.basis) == (2000, EXACT)


def test_brackets_serve_where_no_age_is_exact():
    age, spread, p_female, labels = draw_faces(2000, 0)
    decade = labels.low // 10 * 10
    calibration = calibrate(age, spread, p_female, Labels(decade, decade + 9, labels.female))
    assert calibration.basis == BRACKETS
    exact = calibrate(age, spread, p_female, labels)
    assert calibration.interval_scale == pytest.approx(exact.interval_scale, rel=0.15)
    nothing = np.full(2000, np.nan)
    assert calibrate(age, spread, p_female, Labels(nothing, nothing, labels.female)).faces == 0


def test_from_one_gender_nothing_is_learnt_of_two():
    age, spread, p_female, labels = draw_faces(200, 0)
    calibration = calibrate(age, spread, p_female, Labels(labels.low, labels.high, np.ones(200)))
    assert calibration.min_confidence == 1.0


def test_the_face_that_set_the_scale_stays_inside():
    age, spread, p_female, labels = draw_faces(999, 4)
    calibration = calibrate(age, spread, p_female, labels)
    low, high = bound_ages(age, spread, calibration)
    assert ((low <= labels.low) & (labels.low <= high)).mean() >= 0.9


def test_uncertain_faces_get_wider_intervals():
    calibration = calibrate(*draw_faces(500, 0))
    low, high = bound_ages(np.array([50.0, 50.0]), np.array([1.0, 4.0]), calibration)
    assert (high - low)[1] == pytest.approx(4 * (high - low)[0])


def test_bounds_stay_within_the_ages_there_are():
    low, high = bound_ages(np.array([1.0, 115.0]), np.array([20.0, 20.0]), UNCALIBRATED)
    assert low.min() == 0
    assert high.max() == 116


def test_few_faces_give_cautious_intervals():
    age, spread, p_female, labels = draw_faces(5, 3)
    low, high = bound_ages(age, spread, calibrate(age, spread, p_female, labels))
    assert ((low <= labels.low) & (labels.low <= high)).all()


def test_the_threshold_is_the_lowest_that_is_right_often_enough():
    *_, p_female, labels = draw_faces(4000, 5)
    female = labels.female > 0.5
    p_female = np.where(female, np.maximum(p_female, 0.3), p_female)
    confidence, right = np.maximum(p_female, 1 - p_female), (p_female >= 0.5) == female
    threshold = choose_min_confidence(confidence, right)
    named = confidence >= threshold
    assert named.mean() >= LEAST_NAMED
    assert right[named].mean() >= WANTED_ACCURACY or named.mean() == pytest.approx(LEAST_NAMED, abs=0.01)
    assert 0.5 < threshold < 1


def test_thresholds_at_the_ends():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 1000)
    assert choose_min_confidence(confidence, np.ones(1000, bool)) == 0.5
    half = choose_min_confidence(confidence, rng.uniform(size=1000) < 0.5)
    assert (confidence >= half).mean() == pytest.approx(LEAST_NAMED, abs=0.01)


def test_json_form():
    calibration = Calibration(2.0, 0.9, 0.8, 100)
    assert Calibration.from_json(calibration.to_json()) == calibration
    for bad in ({}, {**calibration.to_json(), "more": 1}, {**calibration.to_json(), "min_confidence": 3}):
        with pytest.raises(CheckpointError, match="calibration of the checkpoint"):
            Calibration.from_json(bad)
