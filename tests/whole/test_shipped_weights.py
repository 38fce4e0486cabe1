"""The weights in the package, on real faces."""

import numpy as np
import pytest

from agegen import Estimator
from agegen.data.loading import load_records
from agegen.model.metadata import read_info
from agegen.model.plugins import list_plugins, locate_file
from agegen.model.weights import CARD_FILE, DEFAULT_MODEL, WEIGHTS_FILE

SHIPPED = [plugin.name for plugin in list_plugins() if locate_file(plugin, WEIGHTS_FILE)]


def test_what_predict_uses_ships():
    assert {DEFAULT_MODEL, "scratch", "vgg16"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_small_calibrated_and_have_their_card(name):
    plugin = next(plugin for plugin in list_plugins() if plugin.name == name)
    path = locate_file(plugin, WEIGHTS_FILE)
    assert path.stat().st_size < (20e6 if name == "vgg16" else 2.2e6)
    info = read_info(path)
    assert info.model == name
    assert info.calibration is not None and info.calibration["faces"] > 1000
    assert info.crop is not None
    assert "non-commercial" in info.training["terms"]
    card = locate_file(plugin, CARD_FILE).read_text()
    assert f"{WEIGHTS_FILE}, {path.stat().st_size / 1e6:.1f} MB" in card
    assert f"agegen train --model {name}" in card


def test_the_portrait(portrait):
    (face,) = Estimator.load().predict(portrait)
    assert face.age_low < 77 < face.age_high
    assert 60 < face.age < 95


def test_real_faces_are_estimated_as_well_as_the_card_says(utkface):
    """On every hundredth face, most of them from the training split: a broken file or alignment would show."""
    records = load_records(str(utkface))
    rows = range(0, len(records), 100)
    paths = [records.images.paths[int(records.frame["row"].iloc[row])] for row in rows]
    faces = [photo.faces[0] for photo in Estimator.load(detector="none").predict_many(paths)]
    labels = records.frame.iloc[list(rows)]
    error = np.abs(np.array([face.age for face in faces]) - labels["age"].to_numpy())
    right = (np.array([face.p_female for face in faces]) >= 0.5) == labels["female"].to_numpy()
    assert error.mean() < 6.0
    assert right.mean() > 0.9
