"""Backbones from timm: architecture families, names, options, and trainings of every kind."""

import json
from pathlib import Path

import pytest
import torch
from agegen_timm import TimmBackbone, list_extras

from agegen.backbone import LossSettings
from agegen.errors import AgegenError
from agegen.hub import create_timm
from agegen.model.network import AgeGenderModel
from agegen.plugins import build_backbone, find_plugin, load_backbone
from agegen.testing import check_backbone
from agegen.train.loop import FitSettings, make_optimizer

pytestmark = pytest.mark.slow

# A small network of each family, with an input size that keeps the test fast.
FAMILIES = {
    "resnet10t": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "efficientnet_lite0": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "regnety_002": 64,
    "repvit_m0_9": 64,
    "fastvit_t8": 64,
    "lcnet_035": 64,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_the_contract_test(name):
    check_backbone(TimmBackbone, argument=name, image_size=FAMILIES[name], onnx=True)


def test_the_input_spec_is_timms_data_config():
    backbone = TimmBackbone("lcnet_035", pretrained=False)
    assert backbone.input_spec.size == 224
    assert backbone.input_spec.mean == pytest.approx((0.485, 0.456, 0.406))
    assert TimmBackbone("lcnet_035", pretrained=False, image_size=64).input_spec.size == 64


def test_only_the_convolutions_of_vgg_are_used():
    backbone = TimmBackbone("vgg11", pretrained=False, image_size=64)
    assert backbone.feature_dim == 512
    assert sum(parameter.numel() for parameter in backbone.parameters()) < 10_000_000
    # The wide last layer of MobileNet is kept: it is pretrained and has fewer parameters.
    assert TimmBackbone("mobilenetv3_small_050", pretrained=False, image_size=64).feature_dim == 1024


def build(name, **options):
    plugin, backbone_class = load_backbone(name)
    return build_backbone(plugin, backbone_class, pretrained=False, options=options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm", {}, "backbone 'timm' of agegen .* requires an argument: --model timm:ARCHITECTURE"),
        ("scratch:x", {}, "backbone 'scratch:x' of agegen .* does not take an argument"),
        ("scratch", {"image_size": 64}, "backbone 'scratch' of agegen .* does not support --image-size"),
        ("timm:resnet19", {}, "timm has no network 'resnet19'. Similar: resnet18"),
        ("timm:mobilenetv4_small", {}, "Similar: .*mobilenetv4_conv_small"),
        ("timm:vgg16.tv", {}, r"timm has no weights 'vgg16\.tv'. Similar: vgg16\.tv_in1k"),
        ("timm:levit_128s", {"image_size": 70}, "does not accept images of 70×70 pixels"),
    ],
)
def test_invalid_names_and_options_are_one_line(name, options, message):
    with pytest.raises(AgegenError, match=message) as caught:
        build(name, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_networks_without_weights_are_refused_offline():
    """Going online, which is the advice for weights that are not cached, would not help."""
    plugin, backbone_class = load_backbone("timm:ghostnet_050")
    with pytest.raises(AgegenError, match=r"timm has no pretrained weights .* Add --no-pretrained.*ghostnet_100"):
        build_backbone(plugin, backbone_class, pretrained=True, options={})
    assert build("timm:ghostnet_050").feature_dim > 0


def test_the_name_includes_the_argument():
    plugin = find_plugin("timm:lcnet_035")
    assert (plugin.name, plugin.argument, plugin.distribution) == ("timm:lcnet_035", "lcnet_035", "agegen")


def test_options_that_a_network_lacks_are_omitted():
    assert list_extras(None) == [{"drop_path_rate": 0.1}, {}]
    assert list_extras(64)[0] == {"img_size": 64, "drop_path_rate": 0.1}
    assert list_extras(64)[-1] == {}
    assert build("timm:convnext_atto", image_size=64).net.stages[3].blocks[-1].drop_path.drop_prob > 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vgg11"])
def test_early_layers_have_a_lower_learning_rate(name):
    model = AgeGenderModel(build(f"timm:{name}", image_size=64))
    settings = FitSettings(1, 1e-3, 0.05, layer_decay=0.5, loss=LossSettings())
    groups = make_optimizer(model, settings).param_groups
    first = next(iter(model.backbone.parameters()))
    scales = [group.get("lr_scale", 1.0) for group in groups if any(one is first for one in group["params"])]
    assert scales[0] < 0.01
    heads = {id(parameter) for parameter in model.heads.parameters()}
    assert all(group.get("lr_scale", 1.0) == 1.0 for group in groups if {id(one) for one in group["params"]} & heads)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_training_from_scratch_records_its_argument(agegen, faces_folder, tmp_path):
    command = ["train", "--model", "timm:lcnet_035", "--no-pretrained", "--image-size", 64, "--data", faces_folder]
    result = agegen(*command, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["model"] == "timm:lcnet_035"
    assert "--model timm:lcnet_035" in record["command"]
    assert "--image-size 64 --no-pretrained" in record["command"]
    assert "timm:lcnet_035" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    for engine in ("onnx", "torch"):
        shown = agegen(
            "predict", next(faces_folder.iterdir()), "--run", tmp_path / "run", "--no-detect", "--engine", engine
        )
        assert shown.exit_code == 0, shown.stderr
        assert "timm:lcnet_035" in shown.stdout
    assert agegen("eval", tmp_path / "run").exit_code == 0


def test_a_frozen_backbone_requires_weights(agegen, faces_folder):
    result = agegen("train", "--model", "timm:lcnet_035", "--no-pretrained", "--freeze", "--data", faces_folder)
    assert result.exit_code == 1
    assert "'timm:lcnet_035' is frozen and requires pretrained weights; remove --no-pretrained" in result.stderr


@pytest.mark.usefixtures("real_vgg16")
def test_frozen_vgg16_caches_its_features(agegen, faces_folder, tmp_path):
    command = ["train", "--model", "timm:vgg16.tv_in1k", "--freeze", "--image-size", 64, "--data", faces_folder]
    result = agegen(*command, "--epochs", 1, "--out", tmp_path / "run", "--cache-dir", tmp_path / "cache")
    assert result.exit_code == 0, result.stderr
    (meta,) = (tmp_path / "cache" / "features").glob("*/meta.json")
    notes = json.loads(meta.read_text())
    assert notes["identity"] == "timm/vgg16.tv_in1k"
    assert notes["build"] == {"freeze": True, "image_size": 64}
    assert (tmp_path / "run" / "best.safetensors").stat().st_size < 2_000_000
    again = agegen("eval", tmp_path / "run", "--cache-dir", tmp_path / "cache")
    assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize("name", ["hf-hub:timm/lcnet_050", "local-dir:.", "hf-hub:lcnet_050", "timm/lcnet_050"])
def test_only_networks_of_timms_registry_are_built(name):
    with pytest.raises(AgegenError, match="timm has no network"):
        TimmBackbone(name, pretrained=False)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AgegenError, match="cannot be downloaded") as caught:
        TimmBackbone("resnet10t.c3_in1k")
    assert len(str(caught.value).splitlines()) == 1


def test_features_differ_between_images():
    backbone = build("timm:lcnet_035", image_size=64).eval()
    with torch.inference_mode():
        one, other = backbone(torch.rand(2, 3, 64, 64))
    assert not torch.equal(one, other)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_pickled_weights_run_no_code(tmp_path):
    config = {"architecture": "lcnet_035", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"conv_stem.weight": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AgegenError) as caught:
        create_timm(f"local-dir:{tmp_path}", pretrained=True)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("exploded").exists()


def test_parts_without_parameters_do_not_count_as_layers():
    """Eight of the 21 parts of VGG11 are convolutions."""
    backbone = build("timm:vgg11", image_size=64)
    groups = backbone.group_parameters(0.05, 0.5)
    assert sorted({group["lr_scale"] for group in groups}) == [0.5**layer for layer in range(8, 0, -1)]
