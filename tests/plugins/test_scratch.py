"""The architecture of `scratch`."""

import pytest
import torch
from agegen_scratch import ScratchBackbone
from torch import nn

from agegen.backbone import HeadConfig
from agegen.model.network import AgeGenderModel, count_parameters


@pytest.fixture
def model():
    with torch.device("meta"):
        return AgeGenderModel(ScratchBackbone())


def test_it_has_about_one_million_trainable_parameters(model):
    total, trainable = count_parameters(model)
    assert 950_000 <= total <= 1_050_000
    assert trainable == total


def test_it_has_four_convolutions_with_pooling(model):
    kinds = [type(layer) for layer in model.backbone.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    assert kinds == [nn.Conv2d, nn.MaxPool2d] * 4
    assert all(layer.groups == 1 for layer in model.backbone.modules() if isinstance(layer, nn.Conv2d))
    assert not [layer for layer in model.backbone.modules() if isinstance(layer, nn.Linear)]


def test_it_has_two_heads_of_two_dense_layers(model):
    for branch, outputs in ((model.heads.age, 117), (model.heads.gender, 1)):
        dense = [layer for layer in branch.modules() if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in dense] == [32, outputs]
    assert sum(isinstance(layer, nn.Linear) for layer in model.modules()) == 4


def test_width_and_dropout_of_the_heads_can_be_set():
    with torch.device("meta"):
        model = AgeGenderModel(ScratchBackbone(), HeadConfig(hidden=16, dropout=0.1))
    assert model.heads.age[0].out_features == 16
    assert model.heads.gender[3].p == 0.1
