"""The contract tests: all installed backbones pass, and violations are reported in one line."""

import pytest
from torch import nn

from agegen.backbone import Backbone, HeadConfig, InputSpec, TrainingDefaults
from agegen.model.network import AgeGenderModel, Outputs
from agegen.plugins import list_plugins, load_plugin
from agegen.testing import BackboneContract, check_backbone

PLUGINS = [plugin for plugin in list_plugins() if not plugin.taken_by]
# timm takes an argument; test_timm.py tests it with many.
PLAIN = [plugin for plugin in PLUGINS if plugin.name != "timm"]


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLAIN, ids=lambda plugin: plugin.name)
def test_every_installed_backbone_passes(plugin):
    check_backbone(load_plugin(plugin))


@pytest.mark.slow
@pytest.mark.usefixtures("real_vgg16")
def test_vgg16_passes_with_its_real_weights():
    plugin = next(plugin for plugin in PLUGINS if plugin.name == "vgg16")
    check_backbone(load_plugin(plugin), pretrained=True)


class Tiny(Backbone):
    input_spec = InputSpec(size=32)
    feature_dim = 8
    defaults = TrainingDefaults(epochs=1, lr=1e-3, batch_size=8)

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.early = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images):
        return self.late(self.early(images)).mean(dim=(2, 3))


class TestTiny(BackboneContract):
    """pytest collects the tests of the base class."""

    backbone = Tiny


class Half(Tiny):
    trained_parts = ("late",)


class TestHalf(BackboneContract):
    backbone = Half
    exports_to_onnx = False


def test_parts_that_are_not_trained_stay_in_evaluation_mode():
    model = AgeGenderModel(Half()).train()
    training = {name: module.training for name, module in model.backbone.named_modules() if name}
    assert not any(flag for name, flag in training.items() if name.startswith("early"))
    assert all(flag for name, flag in training.items() if name.startswith("late"))
    assert all(module.training for module in model.heads.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone.early.parameters())
    assert not any(module.training for module in model.eval().modules())


def make_broken(**members):
    return type("Broken", (Tiny,), members)


class Moving(Tiny):
    frozen = True
    identity = "moving"

    def forward(self, images):
        self.early[1].running_mean += 1
        return super().forward(images)


class Constant(Tiny):
    def forward(self, images):
        return super().forward(images) * 0


class Unused(Tiny):
    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.spare = nn.Linear(2, 2)


class Pair(Tiny):
    def forward(self, images):
        return super().forward(images), images


class Lazy(Tiny):
    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.spare = nn.LazyLinear(2)


class Tied(Tiny):
    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.last = nn.Linear(8, 8)
        self.again = self.last

    def forward(self, images):
        return self.again(self.last(super().forward(images)))


def test_shared_weights_are_allowed():
    check_backbone(Tied)


class Stray(Half):
    def forward(self, images):
        if self.training:
            self.early[1].running_mean += 1
        return super().forward(images)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (make_broken(feature_dim=100), r"features are \(2, 8\), feature_dim says 100"),
        (Pair, r"features are a tuple, not a tensor \(N, 8\)"),
        (make_broken(forward=lambda self, images: self.late(self.early(images))), r"features are \(2, 8, 6, 6\), not"),
        (Lazy, r"Lazy\.spare\.weight has no size \(a lazy layer\)"),
        (make_broken(input_spec=None), r"Broken\.input_spec must be set to a InputSpec"),
        (make_broken(frozen=True), "Broken is frozen, so it must name its weights"),
        (make_broken(trained_parts=("later",)), "Broken has no part 'later'"),
        (make_broken(make_heads=lambda self, config: nn.Linear(8, 8)), "has no attribute 'age_logits'"),
        (Moving, "a frozen backbone has changed"),
        (Constant, "features are the same for every image"),
        (Unused, "no gradient reaches backbone.spare.weight"),
        (Stray, r"early\.1\.running_mean'\] has changed, but is not in trained_parts"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_violations_are_reported_in_one_line(backbone, message):
    with pytest.raises(Exception, match=message) as caught:
        check_backbone(backbone)
    assert len(str(caught.value).splitlines()) == 1


def test_requirements_can_be_disabled():
    class Contract(BackboneContract):
        backbone = Unused
        trains_every_parameter = False

    Contract().test_a_step_changes_only_trainable_parts()


def test_a_missing_declaration_is_named_in_the_error():
    class Empty(Backbone):
        pass

    with pytest.raises(AssertionError, match=r"Empty\.input_spec must be set to a InputSpec"):
        check_backbone(Empty)


class CustomHeads(Tiny):
    """Custom heads: one layer for both."""

    heads = HeadConfig(hidden=16, age_hidden=24)

    def make_heads(self, config):
        class Heads(nn.Module):
            def __init__(self, features):
                super().__init__()
                self.both = nn.Linear(features, 118)

            def forward(self, features):
                values = self.both(features)
                return Outputs(values[:, :117], values[:, 117])

        return Heads(self.feature_dim)


def test_custom_heads_pass():
    check_backbone(CustomHeads)
    assert not hasattr(AgeGenderModel(CustomHeads()).heads, "age")


def test_the_heads_can_have_different_widths():
    wide = type("Wide", (Tiny,), {"heads": HeadConfig(hidden=16, age_hidden=24)})
    heads = AgeGenderModel(wide()).heads
    assert (heads.age[0].out_features, heads.gender[0].out_features) == (24, 16)
    check_backbone(wide)
