"""Explanation maps depend on the model's weights and on the image, and are drawn."""

import numpy as np
import pytest
import torch
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
from agegen.predict.explain import ExplainConfig, compute_grad_cam, compute_occlusion, explain_face

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
        assert found.max() > 0
        assert np.array_equal(found, getattr(again, task))
        # The correlation of a constant map is NaN.
        assert not correlate(found, getattr(random, task)) >= 0.7


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
        assert found[inner].mean() > 0
        assert blank[inner].max() < 0.01 * found[inner].mean()
        assert blank.max() > 0


@pytest.mark.parametrize("model", ["compact", "scratch"])
def test_the_command_draws_maps_of_the_bundled_models(agegen, portrait, tmp_path, model):
    for method in ("occlusion", "grad-cam"):
        out = tmp_path / f"{method}.png"
        done = agegen("explain", portrait, "-o", out, "--model", model, "--method", method)
        assert done.exit_code == 0, done.stderr
        assert "years" in done.stdout
        assert Image.open(out).width > 1000


@pytest.mark.usefixtures("random_vgg16")
def test_grad_cam_works_with_a_frozen_backbone(crop):
    backbone = load_backbone("vgg16")[1](pretrained=False)
    maps = compute_grad_cam(AgeGenderModel(backbone), resize_image(crop, backbone.input_spec.size))
    assert maps.age.max() > 0


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
