"""The bundled weights, on real faces."""

import numpy as np
import pytest

from agegen import Estimator
from agegen.data.loading import load_records
from agegen.model.metadata import read_info
from agegen.model.weights import DEFAULT_MODEL, find_weights, list_weights, read_card
from agegen.plugins import find_plugin, list_plugins

BUNDLED = [(plugin.name, weights.name) for plugin in list_plugins() for weights in list_weights(plugin)]


def test_the_default_weights_are_bundled():
    assert {(DEFAULT_MODEL, "default"), ("scratch", "default"), ("vgg16", "default")} <= set(BUNDLED)


@pytest.mark.parametrize(("name", "which"), BUNDLED)
def test_weights_are_small_and_calibrated_and_have_a_card(name, which):
    path = find_weights(name, which)
    assert path.stat().st_size < (20e6 if name == "vgg16" else 2.5e6)
    info = read_info(path)
    assert info.model == name
    assert info.calibration is not None and info.calibration["faces"] > 1000
    assert info.crop is not None
    terms = info.training["terms"]
    # Weights that were not trained on UTKFace are free of its terms.
    assert ("non-commercial" in terms) == (which != "open")
    card = read_card(name, which)
    assert f"{path.name}, {path.stat().st_size / 1e6:.1f} MB" in card
    assert f"agegen train --model {name}" in card
    assert find_plugin(name).version == info.version


def test_the_age_of_the_portrait_is_in_its_interval(portrait):
    (face,) = Estimator.load().predict(portrait)
    assert face.age_low < 77 < face.age_high
    assert 60 < face.age < 95


def test_real_faces_are_estimated_as_accurately_as_the_card_says(utkface):
    """On every hundredth face, mostly training faces: it detects a broken file or alignment."""
    records = load_records(str(utkface))
    rows = range(0, len(records), 100)
    paths = [records.images.paths[int(records.frame["row"].iloc[row])] for row in rows]
    faces = [photo.faces[0] for photo in Estimator.load(detector="none").predict_many(paths)]
    labels = records.frame.iloc[list(rows)]
    error = np.abs(np.array([face.age for face in faces]) - labels["age"].to_numpy())
    right = (np.array([face.p_female for face in faces]) >= 0.5) == labels["female"].to_numpy()
    assert error.mean() < 6.0
    assert right.mean() > 0.9
