"""Maps of what estimates rest on: they belong to the model and to the face, and can be looked at."""

import numpy as np
import pytest
import torch
from PIL import Image

from agegen import Estimator
from agegen.data.images import resize_image
from agegen.engines.torch_engine import TorchEngine
from agegen.errors import AgegenError
from agegen.explain import ExplainConfig, explain_face, map_gradients, map_occlusion
from agegen.machine import choose_compute
from agegen.model.checkpoint import load_checkpoint
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_weights
from agegen.plugins import load_backbone

COMPUTE = choose_compute("cpu", "fp32")


@pytest.fixture(scope="module")
def crop(portrait):
    """The portrait's face as the model takes it."""
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
        return map_gradients(model, crop) if method == "grad-cam" else map_occlusion(TorchEngine(model, COMPUTE), crop)

    trained, again, random = explain(load_compact()), explain(load_compact()), explain(load_compact(random=True))
    for task in ("age", "gender"):
        found = getattr(trained, task)
        assert found.shape == (96, 96)
        assert np.isfinite(found).all()
        assert found.max() > 0
        assert np.array_equal(found, getattr(again, task))
        # Of a map that is empty nothing correlates, either.
        assert not correlate(found, getattr(random, task)) >= 0.7


def test_a_blanked_mouth_changes_the_map_there(crop):
    engine = TorchEngine(load_compact(), COMPUTE)
    mouth = slice(52, 93), slice(20, 77)
    outside = np.ones(crop.shape[:2], dtype=bool)
    outside[mouth] = False
    blanked = crop.copy()
    # In the mean colour of the rest, which so is the mean of all: what patches are covered with.
    blanked[mouth] = crop[outside].mean(axis=0).round()
    before, after = map_occlusion(engine, crop), map_occlusion(engine, blanked)
    # Every patch of 16 pixels that covers one of these lies inside the blank: to cover it again changes nothing.
    inner = slice(68, 77), slice(36, 60)
    for found, blank in zip(before, after, strict=True):
        assert found[inner].mean() > 0
        assert blank[inner].max() < 0.01 * found[inner].mean()
        assert blank.max() > 0


@pytest.mark.parametrize("model", ["compact", "scratch"])
def test_the_command_draws_it_for_the_models_that_ship(agegen, portrait, tmp_path, model):
    for method in ("occlusion", "grad-cam"):
        out = tmp_path / f"{method}.png"
        done = agegen("explain", portrait, "-o", out, "--model", model, "--method", method)
        assert done.exit_code == 0, done.stderr
        assert "years" in done.stdout
        assert Image.open(out).width > 1000


@pytest.mark.usefixtures("random_vgg16")
def test_a_frozen_base_can_be_followed_too(crop):
    backbone = load_backbone("vgg16")[1](pretrained=False)
    maps = map_gradients(AgeGenderModel(backbone), resize_image(crop, backbone.input_spec.size))
    assert maps.age.max() > 0


def test_mistakes_are_one_line(agegen, portrait, tmp_path):
    Image.new("RGB", (300, 200), "green").save(tmp_path / "empty.png")
    for words, message in (
        ([portrait, "--face", 2], "has 1 faces (mtcnn), no number 2"),
        ([tmp_path / "empty.png"], "has 0 faces"),
        ([tmp_path / "none.jpg"], "no such file"),
        ([portrait, "-o", tmp_path / "map.txt"], "ends in .png"),
        ([portrait, "--method", "guess"], "--method is one of occlusion, grad-cam"),
    ):
        done = agegen("explain", *words)
        assert done.exit_code == 1
        assert message in done.stderr
    onnx = find_weights("compact").with_suffix(".onnx")
    with pytest.raises(AgegenError, match="needs a checkpoint"):
        explain_face(ExplainConfig(str(portrait), tmp_path / "m.png", run=onnx, method="grad-cam"))
