"""What a backbone can define besides its network: augmentation, crop, parameter groups, loss settings, defaults."""

import json
from importlib.metadata import EntryPoint

import albumentations
import numpy as np
import pytest
import torch
from torch import nn

from agegen.backbone import Backbone, InputSpec, LossSettings, TrainingDefaults
from agegen.batches.images import build_train_augmentation
from agegen.errors import PluginError, TrainingInterrupted
from agegen.faces.alignment import AlignmentTemplate
from agegen.model.loss import Targets, compute_loss, make_age_distribution
from agegen.model.network import AgeGenderModel, Outputs
from agegen.plugins import Plugin
from agegen.train.config import TrainConfig, read_config
from agegen.train.loop import FitSettings, make_optimizer
from agegen.train.train import train_and_finish


class Hooked(Backbone):
    input_spec = InputSpec(size=32)
    feature_dim = 8
    defaults = TrainingDefaults(
        epochs=1, lr=1e-3, batch_size=8, warmup=0.3, ema_decay=0.5, loss=LossSettings(sigma=4, gender=3)
    )
    trained_parts = ("late",)

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.early = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images):
        return self.late(self.early(images)).mean(dim=(2, 3))

    def make_augmentation(self):
        return albumentations.Compose([albumentations.InvertImg(p=1)])

    def group_parameters(self, weight_decay, layer_decay):
        return [{"params": list(self.late.parameters()), "lr_scale": 0.25, "weight_decay": 0.0}]


@pytest.fixture
def hooked(monkeypatch):
    """Make ``--model scratch`` the hooked backbone."""
    point = EntryPoint("scratch", f"{__name__}:Hooked", "agegen.backbones")
    plugin = Plugin("scratch", "agegen", "0", point)
    monkeypatch.setattr("agegen.train.setup.load_backbone", lambda name: (plugin, Hooked))
    monkeypatch.setattr("agegen.model.checkpoint.load_backbone", lambda name: (plugin, Hooked))


@pytest.mark.usefixtures("hooked", "quick_training")
def test_training_uses_the_settings_of_the_backbone(faces_folder, tmp_path):
    events = list(train_and_finish(TrainConfig("scratch", (str(faces_folder),), tmp_path / "run", workers=0)))
    assert events
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["loss"] == {"sigma": 4, "expectation": 0.2, "gender": 3, "soft": 0.5}
    assert (record["settings"]["warmup"], record["settings"]["ema_decay"]) == (0.3, 0.5)
    total, trained = record["parameters"]["total"], record["parameters"]["trainable"]
    assert total - trained == sum(parameter.numel() for parameter in Hooked().early.parameters())


def test_the_backbones_augmentation_replaces_agegens():
    image = np.full((32, 32, 3), 10, np.uint8)
    augmentation = build_train_augmentation(Hooked.input_spec, Hooked().make_augmentation())
    assert (augmentation(image, (0, 0, 0)) == 245).all()
    assert "InvertImg" in str(augmentation)


def test_an_augmentation_with_the_wrong_result_is_one_line():
    resize = albumentations.Compose([albumentations.Resize(16, 16)])
    augmentation = build_train_augmentation(Hooked.input_spec, resize)
    with pytest.raises(PluginError, match=r"augmentation returns uint8 \(16, 16, 3\), not uint8 \(32, 32, 3\)"):
        augmentation(np.zeros((32, 32, 3), np.uint8), (0, 0, 0))


def test_the_optimizer_uses_the_backbones_parameter_groups():
    model = AgeGenderModel(Hooked())
    groups = make_optimizer(model, FitSettings(1, 1e-3, 0.05)).param_groups
    assert groups[0]["lr_scale"] == 0.25
    assert {id(one) for one in groups[0]["params"]} == {id(one) for one in model.backbone.late.parameters()}
    assert sum(len(group["params"]) for group in groups[1:]) == len(list(model.heads.parameters()))


def test_loss_settings_affect_the_loss():
    ages = torch.tensor([30.0])
    assert make_age_distribution(ages, 4.0).max() < make_age_distribution(ages, 2.0).max() / 1.8
    outputs = Outputs(torch.zeros(1, 117), torch.tensor([-20.0]))
    targets = Targets(torch.tensor([float("nan")]), torch.tensor([float("nan")]), torch.ones(1))
    losses = [compute_loss(outputs, targets, LossSettings(gender=weight)) for weight in (1, 3)]
    assert losses[1] == pytest.approx(3 * losses[0])


class Wide(Hooked):
    """Its crops show more around the face than those of UTKFace."""

    crop = tuple((0.5 + (x - 0.5) * 0.8, 0.5 + (y - 0.5) * 0.8) for x, y in AlignmentTemplate().landmarks)


@pytest.mark.slow
@pytest.mark.real
def test_images_are_cropped_as_the_backbone_requires(utkface, monkeypatch, tmp_path):
    point = EntryPoint("scratch", f"{__name__}:Wide", "agegen.backbones")
    plugin = Plugin("scratch", "agegen", "0", point)
    monkeypatch.setattr("agegen.train.setup.load_backbone", lambda name: (plugin, Wide))
    monkeypatch.setattr("agegen.model.checkpoint.load_backbone", lambda name: (plugin, Wide))
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(utkface.iterdir())[::250]:
        (data / path.name).symlink_to(path)
    for _ in train_and_finish(TrainConfig("scratch", (str(data),), tmp_path / "run", workers=0)):
        pass
    (trim,) = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["trims"].values()
    assert trim["side"] == pytest.approx(1.25, abs=0.06)


class Choosy(Hooked):
    """Its defaults depend on whether it is pretrained, as with timm's networks."""

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.defaults = TrainingDefaults(epochs=2, lr=1e-3, batch_size=8, layer_decay=0.5 if pretrained else None)


@pytest.mark.usefixtures("quick_training")
def test_a_resumed_training_keeps_its_defaults(faces_folder, tmp_path, monkeypatch):
    plugin = Plugin("scratch", "agegen", "0", EntryPoint("scratch", f"{__name__}:Choosy", "agegen.backbones"))
    monkeypatch.setattr("agegen.train.setup.load_backbone", lambda name: (plugin, Choosy))
    monkeypatch.setattr("agegen.model.checkpoint.load_backbone", lambda name: (plugin, Choosy))
    config = TrainConfig("scratch", (str(faces_folder),), tmp_path / "run", workers=0)
    with pytest.raises(TrainingInterrupted):
        list(train_and_finish(config, should_stop=lambda: True))
    for _ in train_and_finish(read_config(tmp_path / "run", {})):
        pass
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert record["settings"]["layer_decay"] == 0.5
