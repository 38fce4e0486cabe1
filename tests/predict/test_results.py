import numpy as np
import pytest
import torch

from agegen.engines.torch_engine import load_torch
from agegen.model.calibration import UNCALIBRATED
from agegen.model.loss import DEFAULT_LOSS, make_age_distribution
from agegen.model.network import compute_std
from agegen.predict.estimator import FaceModel
from agegen.predict.results import FacePrediction, PhotoPrediction, choose_gender


@pytest.fixture(scope="module")
def model(trained_run):
    return FaceModel(*load_torch(trained_run / "best.safetensors", "cpu", "fp32"))


def test_mirrored_faces_get_the_same_estimate(model):
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    first, second = model.estimate([image, np.ascontiguousarray(image[:, ::-1])])
    assert first.age == pytest.approx(second.age, abs=1e-4)
    assert first.p_female == pytest.approx(second.p_female, abs=1e-5)
    assert first.age_low <= first.age <= first.age_high
    assert model.estimate([]) == []


def test_a_trained_model_is_calibrated_and_drawn_faces_have_the_default_crop(model):
    assert model.calibration.faces > 0
    assert model.calibration != UNCALIBRATED
    assert 0.5 <= model.calibration.min_confidence <= 1


def test_spread_of_a_known_distribution():
    spread = compute_std(make_age_distribution(torch.tensor([40.0, 60.0])))
    assert spread.tolist() == pytest.approx([DEFAULT_LOSS.sigma, DEFAULT_LOSS.sigma], abs=0.05)


@pytest.mark.parametrize(
    ("p_female", "threshold", "gender"),
    [(0.5, 0.5, "female"), (0.49, 0.5, "male"), (0.79, 0.8, "uncertain"), (0.2, 0.8, "male"), (0.8, 0.8, "female")],
)
def test_gender_below_the_threshold_is_uncertain(p_female, threshold, gender):
    assert choose_gender(p_female, threshold) == gender


def test_a_photograph_always_has_a_row():
    assert PhotoPrediction("a", "no_face").list_rows() == [FacePrediction("a", "no_face")]
    (row,) = PhotoPrediction("a", "unreadable", reason="broken").list_rows()
    assert (row.reason, row.to_json()["reason"]) == ("broken", "broken")
    assert "reason" not in FacePrediction("a", "no_face").to_json()
