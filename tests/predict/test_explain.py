"""Explanation maps depend on the model's weights and on the image, and are drawn."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from agegen import Estimator
from agegen.data.images import resize_image
from agegen.engines.torch_engine import TorchEngine
from agegen.errors import AgegenError
from agegen.machine import choose_compute
from agegen.model.checkpoint import load_checkpoint
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_weights
from agegen.plugins import load_backbone
from agegen.predict.explain import (
    ExplainConfig,
    Explanation,
    SanityCheck,
    compare_maps,
    compute_grad_cam,
    compute_occlusion,
    draw_explanation,
    explain_face,
    shuffle_weights,
)
from agegen.predict.results import FacePrediction

COMPUTE = choose_compute("cpu", "fp32")


@pytest.fixture(scope="module")
def crop(portrait):
    """The aligned crop of the portrait, in the model's input size."""
    estimator = Estimator.load("compact", detector="mtcnn")
    (photo,) = estimator.predict_many([portrait], keep_crops=True)
    return resize_image(photo.crops[0], 96)


def load_compact(random=False):
    if random:
        torch.manual_seed(0)
        return AgeGenderModel(load_backbone("compact")[1](pretrained=False)).eval()
    return load_checkpoint(find_weights("compact"))[1].eval()


def correlate(first, second):
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("method", ["occlusion", "grad-cam"])
def test_random_weights_give_another_map(crop, method):
    """Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018."""

    def explain(model):
        if method == "grad-cam":
            return compute_grad_cam(model, crop)
        return compute_occlusion(TorchEngine(model, COMPUTE), crop)

    trained, again, random = explain(load_compact()), explain(load_compact()), explain(load_compact(random=True))
    for task in ("age", "gender"):
        found = getattr(trained, task)
        assert found.shape == (96, 96)
        assert np.isfinite(found).all()
        assert np.abs(found).max() > 0
        assert np.array_equal(found, getattr(again, task))
        # The correlation of a constant map is NaN.
        assert not correlate(found, getattr(random, task)) >= 0.7
    sanity = compare_maps(trained, random)
    assert sanity.passed
    assert compare_maps(trained, again).age == pytest.approx(1)
    assert not compare_maps(trained, again).passed
    assert "do not interpret these maps" in compare_maps(trained, again).describe()


def test_a_blanked_mouth_changes_the_map_there(crop):
    engine = TorchEngine(load_compact(), COMPUTE)
    mouth = slice(52, 93), slice(20, 77)
    outside = np.ones(crop.shape[:2], dtype=bool)
    outside[mouth] = False
    blanked = crop.copy()
    # The mean colour of the rest is then that of the whole crop, which is the colour of the patches.
    blanked[mouth] = crop[outside].mean(axis=0).round()
    before, after = compute_occlusion(engine, crop), compute_occlusion(engine, blanked)
    # Every patch of 16 pixels that covers one of these is inside the blanked region, so it changes nothing.
    inner = slice(68, 77), slice(36, 60)
    for found, blank in zip(before, after, strict=True):
        size = np.abs(found[inner]).mean()
        assert size > 0
        assert np.abs(blank[inner]).max() < 0.01 * size
        assert np.abs(blank).max() > 0


class OneFeature:
    """An engine whose age falls, and whose P(female) grows, with the brightness of the middle of a crop."""

    input_size = 96

    def run(self, crops):
        middle = crops[:, 40:56, 40:56].reshape(len(crops), -1).mean(axis=1) / 255
        return SimpleNamespace(age=80 - 60 * middle, p_female=0.9 * middle)


def test_maps_have_the_direction_of_the_influence():
    crop = np.zeros((96, 96, 3), np.uint8)
    crop[40:56, 40:56] = 255
    maps = compute_occlusion(OneFeature(), crop)
    # The bright middle makes the estimate younger and more female.
    assert maps.age[48, 48] == maps.age.min() < -10
    assert maps.gender[48, 48] == maps.gender.max() > 0.1
    assert maps.age[5, 5] == maps.gender[5, 5] == 0
    face = FacePrediction("a.jpg", "ok", 1, (0, 0, 1, 1), 34.2, 27.0, 41.4, "female", 0.984, "mtcnn")
    figure = draw_explanation(Explanation(face, crop, maps, sanity=SanityCheck(0.04, -0.1)))
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert "← makes the estimate younger | older → (years)" in texts
    assert "← makes the estimate more male | more female → (P(female))" in texts
    assert any("is 0.04 for age and -0.10 for gender; the maps depend" in text for text in texts)
    # Without ages there is no map of them.
    figure = draw_explanation(Explanation(replace(face, age=None), crop, maps, "grad-cam"))
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert not any("younger" in text for text in texts)
    assert any("often mark the background" in text for text in texts)
    assert any("not done" in text for text in texts)


def test_shuffled_weights_keep_their_values_and_lose_their_places():
    before, after = load_compact(), shuffle_weights(load_compact())
    for one, two in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
    assert not torch.equal(next(before.parameters()), next(after.parameters()))


@pytest.mark.parametrize("model", ["compact", "scratch"])
def test_the_command_draws_maps_of_the_bundled_models(agegen, portrait, tmp_path, model):
    for method in ("occlusion", "grad-cam"):
        out = tmp_path / f"{method}.png"
        done = agegen("explain", portrait, "-o", out, "--model", model, "--method", method)
        assert done.exit_code == 0, done.stderr
        assert "years" in done.stdout
        assert "Sanity check: the rank correlation with the maps of shuffled weights is" in done.stdout
        assert ("often mark the background" in done.stdout) == (method == "grad-cam")
        assert Image.open(out).width > 1000


@pytest.mark.usefixtures("random_vgg16")
def test_grad_cam_works_with_a_frozen_backbone(crop):
    backbone = load_backbone("vgg16")[1](pretrained=False)
    maps = compute_grad_cam(AgeGenderModel(backbone), resize_image(crop, backbone.input_spec.size))
    assert np.abs(maps.age).max() == pytest.approx(1)


def test_json_has_the_result_of_the_sanity_check(agegen, portrait, tmp_path):
    done = agegen("explain", portrait, "-o", tmp_path / "map.png", "--json", "-")
    content = json.loads(done.stdout)
    assert content["face"] == 1
    assert content["figure"] == str(tmp_path / "map.png")
    assert content["sanity_check"].keys() == {"age", "gender", "passed"}
    assert content["sanity_check"]["passed"] is True
    assert content["remarks"][0].startswith("Sanity check: ")


def test_errors_are_one_line(agegen, portrait, tmp_path):
    Image.new("RGB", (300, 200), "green").save(tmp_path / "empty.png")
    for words, message in (
        ([portrait, "--face", 2], "no face 2 in"),
        ([tmp_path / "empty.png"], "0 found (detector mtcnn)"),
        ([tmp_path / "none.jpg"], "no such file"),
        ([portrait, "-o", tmp_path / "map.txt"], "unsupported image format"),
    ):
        done = agegen("explain", *words)
        assert done.exit_code == 1
        assert message in done.stderr
    onnx = find_weights("compact").with_suffix(".onnx")
    with pytest.raises(AgegenError, match="needs a checkpoint"):
        explain_face(ExplainConfig(str(portrait), tmp_path / "m.png", run=onnx, method="grad-cam"))
