from dataclasses import replace

import numpy as np
import pytest

from agegen.model.calibration import UNCALIBRATED, Calibration, compute_probability_under, compute_sigma
from agegen.predict.results import (
    ExtractedFaces,
    FaceEstimate,
    FacePrediction,
    PhotoPrediction,
    RowBuilder,
    choose_gender,
)


@pytest.mark.parametrize(
    ("p_female", "threshold", "gender"),
    [(0.5, 0.5, "female"), (0.49, 0.5, "male"), (0.79, 0.8, "uncertain"), (0.2, 0.8, "male"), (0.8, 0.8, "female")],
)
def test_gender_below_the_threshold_is_uncertain(p_female, threshold, gender):
    assert choose_gender(p_female, threshold) == gender


def test_an_explicit_threshold_replaces_those_of_the_model():
    banded = replace(UNCALIBRATED, doubtful=((0.0, 3.0, 0.9),))
    model = RowBuilder("m", "d", banded)
    assert (model.choose_threshold(1.0), model.choose_threshold(30.0), model.threshold_range) == (0.9, 0.5, (0.5, 0.9))
    explicit = RowBuilder("m", "d", banded, min_confidence=0.7)
    assert (explicit.choose_threshold(1.0), explicit.threshold_range) == (0.7, (0.7, 0.7))


def test_a_row_has_the_threshold_that_chose_its_gender():
    model = RowBuilder("m", "d", replace(UNCALIBRATED, doubtful=((0.0, 3.0, 0.9),)))
    estimates = [FaceEstimate(age, age - 1, age + 1, 0.8, 1.0) for age in (1.0, 30.0)]
    infant, adult = model.build(ExtractedFaces("a.jpg", faces=(None, None)), estimates).faces
    assert (infant.gender, infant.to_json()["gender_threshold"]) == ("uncertain", 0.9)
    assert (adult.gender, adult.to_json()["gender_threshold"]) == ("female", 0.5)


def test_a_photo_always_has_a_row():
    assert PhotoPrediction("a", "no_face").list_rows() == [FacePrediction("a", "no_face")]
    (row,) = PhotoPrediction("a", "unreadable", reason="broken").list_rows()
    assert (row.reason, row.to_json()["reason"]) == ("broken", "broken")
    assert "reason" not in FacePrediction("a", "no_face").to_json()


def test_shares_agree_with_the_intervals():
    """5 % of a normal distribution lie below its calibrated 90 % interval."""
    calibration = Calibration(2.0, 0.9, 0.5, 100)
    age, std = np.array([30.0]), np.array([5.0])
    sigma = float(compute_sigma(age, std, calibration)[0])
    assert compute_probability_under(30 - 10 + 0.5, 30.0, sigma) == pytest.approx(0.05, abs=1e-3)
    assert compute_probability_under(30.5, 30.0, sigma) == pytest.approx(0.5)
    (low, first), (high, second) = FaceEstimate(30.0, 20.0, 40.0, 0.5, sigma).compute_shares((20, 31))
    assert (low, high) == (20, 31)
    assert 0 < first < 0.05 < 0.5 < second < 1


def test_reasons_are_on_one_line():
    """Messages of decoders have line breaks, which spreadsheets show as further rows."""
    reason = "not a readable image (Invalid input:\n  end of file)\n"
    (row,) = PhotoPrediction("a.heic", "unreadable", reason=reason).list_rows()
    assert row.reason == "not a readable image (Invalid input: end of file)"
