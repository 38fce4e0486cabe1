"""The number of views to average over: declared by the backbone, stored in checkpoints, used by all."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from torch import nn

from agegen.backbone import Backbone, InputSpec, TrainingDefaults, find_contract_gap
from agegen.compare.costs import measure_speed
from agegen.engines.engine import load_onnx
from agegen.engines.torch_engine import load_torch
from agegen.evaluate.estimates import read_predictions
from agegen.evaluate.subject import open_subject
from agegen.faces.matching import LandmarkStats
from agegen.machine import choose_compute
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import format_info, parse_info, read_info
from agegen.model.network import AgeGenderModel, average_outputs, expect_age, stack_images
from agegen.model.weights import find_weights
from agegen.plugins import Plugin
from agegen.train.config import TrainConfig
from agegen.train.train import train_and_finish

CPU = choose_compute("cpu", "fp32")


class OneView(Backbone):
    """A face and its mirror image have different features: each half of the image has its own."""

    input_spec = InputSpec(size=32)
    feature_dim = 16
    defaults = TrainingDefaults(epochs=1, lr=1e-2, batch_size=8)
    views = 1

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten())

    def forward(self, images):
        return self.layers(images)


def install(patch):
    plugin = Plugin("scratch", "agegen", "0", EntryPoint("scratch", f"{__name__}:OneView", "agegen.backbones"))
    patch.setattr("agegen.train.setup.load_backbone", lambda name: (plugin, OneView))
    patch.setattr("agegen.model.checkpoint.load_backbone", lambda name: (plugin, OneView))


@pytest.fixture
def installed(monkeypatch):
    """Make ``--model scratch`` the backbone with one view."""
    install(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory, faces_folder):
    folder = tmp_path_factory.mktemp("views") / "run"
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        patch.setattr("agegen.train.train.plot_curves", lambda path, curves: None)
        patch.setattr("agegen.train.setup.measure_dataset", lambda records: LandmarkStats(0, np.empty((0, 5, 2)), None))
        for _ in train_and_finish(TrainConfig("scratch", (str(faces_folder),), folder, workers=0, precision="fp32")):
            pass
    return folder


def draw_crops(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def run_model(model, crops, views):
    images = stack_images(list(crops))
    with torch.inference_mode():
        ages, p_female = average_outputs([model(images), model(images.flip(3))][:views])
    return expect_age(ages).numpy(), p_female.numpy()


@pytest.mark.usefixtures("installed")
def test_all_engines_use_the_views_of_the_checkpoint(run):
    checkpoint, crops = run / "best.safetensors", draw_crops()
    _, model = load_checkpoint(checkpoint)
    one, two = (run_model(model, crops, views) for views in (1, 2))
    assert np.abs(one[0] - two[0]).max() > 0.01
    assert load_onnx(run / "best.onnx")[0].views == read_info(checkpoint).views == 1
    for engine in (load_torch(checkpoint, "cpu", "fp32")[1], load_onnx(run / "best.onnx", checkpoint)[1]):
        outputs = engine.run(crops)
        assert outputs.age == pytest.approx(one[0], abs=2e-3)
        assert outputs.p_female == pytest.approx(one[1], abs=2e-4)


@pytest.mark.usefixtures("installed")
def test_evaluations_use_the_views_of_the_checkpoint(run):
    """That at the end of the training, whose predictions the run folder keeps, and those later."""
    subject = open_subject(run=run)
    chosen = subject.splits == "test"
    estimates, _ = subject.estimate(chosen, CPU)
    crops = subject.scan.pixels[np.flatnonzero(chosen)]
    assert estimates.age == pytest.approx(run_model(subject.model, crops, 1)[0], abs=1e-3)
    assert read_predictions(run / "predictions.parquet")["estimated_age"].to_numpy() == pytest.approx(estimates.age)


@pytest.mark.usefixtures("installed")
def test_a_trained_model_keeps_its_views_if_the_class_changes(run, monkeypatch):
    crops = draw_crops()
    before = load_torch(run / "best.safetensors", "cpu", "fp32")[1].run(crops)
    monkeypatch.setattr(OneView, "views", 2)
    assert np.array_equal(load_torch(run / "best.safetensors", "cpu", "fp32")[1].run(crops).age, before.age)


def test_checkpoints_without_the_entry_have_two_views(monkeypatch):
    """As the bundled weights of older versions, also when their class has changed since."""
    import agegen_compact

    path = find_weights("compact", "open")
    text = format_info(read_info(path))["agegen"].replace(', "views": 2', "")
    assert "views" not in text
    assert parse_info(path, {"agegen": text}).views == 2
    monkeypatch.setattr(agegen_compact.CompactBackbone, "views", 1)
    assert load_checkpoint(path)[1].views == 2
    assert AgeGenderModel(agegen_compact.CompactBackbone()).views == 1


@pytest.mark.parametrize("views", [0, 3, "2", None])
def test_other_numbers_of_views_violate_the_contract(monkeypatch, views):
    monkeypatch.setattr(OneView, "views", views)
    assert "OneView.views must be" in find_contract_gap(OneView)


def test_the_measured_speed_is_that_of_the_models_views():
    model = AgeGenderModel(OneView()).eval()
    sizes = []
    model.register_forward_hook(lambda module, arguments, outputs: sizes.append(len(arguments[0])))
    measure_speed(model, "one", "cpu", lambda *_: None)
    calls = len(sizes)
    model.views = 2
    measure_speed(model, "two", "cpu", lambda *_: None)
    assert len(sizes) == 3 * calls
    assert set(sizes) == {32}
