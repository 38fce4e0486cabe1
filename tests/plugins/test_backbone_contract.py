import pytest

from agegen.model.plugins import list_plugins, load_plugin
from agegen.testing import check_backbone

PLUGINS = [plugin for plugin in list_plugins() if not plugin.taken_by]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_installed_backbone_keeps_the_contract(plugin):
    check_backbone(load_plugin(plugin))


@pytest.mark.usefixtures("real_vgg16")
def test_vgg16_keeps_the_contract_with_its_real_weights():
    plugin = next(plugin for plugin in PLUGINS if plugin.name == "vgg16")
    check_backbone(load_plugin(plugin), pretrained=True)


def test_a_wrong_feature_dimension_is_found():
    scratch = load_plugin(next(plugin for plugin in PLUGINS if plugin.name == "scratch"))
    wrong = type("Wrong", (scratch,), {"feature_dim": 100})
    with pytest.raises(AssertionError, match="features on the meta device"):
        check_backbone(wrong)


def test_a_frozen_backbone_that_moves_is_found():
    scratch = load_plugin(next(plugin for plugin in PLUGINS if plugin.name == "scratch"))

    class Moving(scratch):
        frozen = True
        identity = "moving"

        def forward(self, images):
            self.blocks[0][2].running_mean += 1
            return super().forward(images)

    with pytest.raises(AssertionError, match="frozen backbone has changed"):
        check_backbone(Moving)


def test_a_missing_declaration_is_named():
    from agegen.backbone import Backbone

    class Empty(Backbone):
        pass

    with pytest.raises(AssertionError, match=r"Empty\.input_spec must be set to a InputSpec"):
        check_backbone(Empty)
