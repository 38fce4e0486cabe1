"""`vgg16`: its base stays frozen, and its features are computed once."""

import hashlib
from dataclasses import replace

import pytest
import torch
from agegen_vgg16 import VGG16Backbone, create_base

from agegen.errors import AgegenError, CheckpointError
from agegen.evaluate.config import EvalConfig
from agegen.evaluate.evaluate import evaluate_run
from agegen.model.checkpoint import fingerprint_tensors, load_checkpoint
from agegen.model.network import AgeGenderModel, count_parameters
from agegen.train.config import TrainConfig
from agegen.train.train import train_and_finish

pytestmark = pytest.mark.slow


def hash_base(backbone):
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(data, out, **options):
    events = list(train_and_finish(TrainConfig("vgg16", (str(data),), out, epochs=1, batch_size=16, **options)))
    return events[-1]


@pytest.mark.usefixtures("real_vgg16", "quick_training", "two_views")
def test_training_leaves_the_real_weights_bit_identical(faces_folder, tmp_path):
    before = hash_base(VGG16Backbone())
    result = train(faces_folder, tmp_path / "run")
    info, model = load_checkpoint(result.run / "best.safetensors")
    assert hash_base(model.backbone) == before
    assert info.base == {"identity": "timm/vgg16.tv_in1k", "fingerprint": fingerprint_tensors(model.backbone)}


@pytest.mark.usefixtures("random_vgg16")
def test_the_checkpoint_contains_only_the_heads_and_identifies_the_base(faces_folder, tmp_path, monkeypatch):
    import agegen_vgg16
    from safetensors import safe_open

    result = train(faces_folder, tmp_path / "run")
    path = result.run / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"heads", "used_faces"}  # noqa: SIM118
    load_checkpoint(path)

    def create_other(pretrained):
        torch.manual_seed(8)
        return create_base(False)

    monkeypatch.setattr(agegen_vgg16, "create_base", create_other)
    with pytest.raises(CheckpointError, match="Use the weights that the heads were trained on"):
        load_checkpoint(path)


@pytest.mark.usefixtures("random_vgg16")
def test_features_are_computed_once_for_training_and_evaluation(faces_folder, tmp_path):
    stages = []

    def record(stage, done, total):
        stages.append(stage)

    config = TrainConfig("vgg16", (str(faces_folder),), tmp_path / "first", epochs=1, batch_size=16)
    *_, first = train_and_finish(config, record)
    views = VGG16Backbone.defaults.views
    extracted = {stage for stage in stages if "extracting" in stage}
    assert extracted == {f"extracting features, view {view + 1} of {views}" for view in range(views)}
    stages.clear()
    *_, second = train_and_finish(replace(config, out=tmp_path / "second"), record)
    result = evaluate_run(EvalConfig(first.run), record)
    assert not [stage for stage in stages if "extracting" in stage]
    assert result.evaluation.to_json() == first.evaluation.to_json() == second.evaluation.to_json()


def test_the_base_is_frozen_and_convolutional():
    with torch.device("meta"):
        model = AgeGenderModel(VGG16Backbone(pretrained=False))
    total, trainable = count_parameters(model.backbone)
    assert (total, trainable) == (14_714_688, 0)
    assert not [layer for layer in model.backbone.modules() if isinstance(layer, torch.nn.Linear)]
    assert not model.train().backbone.training


def test_missing_weights_are_one_line(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AgegenError, match="Go online once, or set HF_HOME") as caught:
        create_base(True)
    assert "\n" not in str(caught.value)
