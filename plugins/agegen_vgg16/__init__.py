"""Model B: features of an ImageNet VGG16, whose convolutional base stays frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agegen.backbone import Backbone, HeadConfig, InputSpec, TrainingDefaults
from agegen.hub import create_timm

TIMM_NAME = "vgg16.tv_in1k"
# (index of the block in timm's list of feature maps, its channels, side of the grid that it is averaged to)
GRIDS = ((1, 128, 8), (2, 256, 8), (3, 512, 4), (4, 512, 2))


class VGG16Backbone(Backbone):
    """The last maps of VGG16's blocks 2 to 5, each averaged to a grid, concatenated and square-rooted.

    Fine grids of early blocks are more informative about a face than the last block, which was trained to recognize
    objects. The square root shortens the long tails of ReLU activations before the heads standardize them.
    """

    input_spec = InputSpec(size=96)
    feature_dim = sum(channels * side * side for _, channels, side in GRIDS)
    defaults = TrainingDefaults(epochs=15, lr=1e-3, batch_size=128, weight_decay=0.2, views=4, age_balance=0.3)
    heads = HeadConfig(hidden=128, dropout=0.6, standardize=True)
    frozen = True
    identity = f"timm/{TIMM_NAME}"

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__(pretrained=pretrained)
        self.base = create_base(pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, 96, 96) to features (N, 34816), none negative."""
        maps = self.base(images)
        grids = [F.adaptive_avg_pool2d(part.float(), side) for part, (_, _, side) in zip(maps, GRIDS, strict=True)]
        return torch.cat([grid.flatten(1) for grid in grids], dim=1).sqrt()


def create_base(pretrained: bool) -> nn.Module:
    """Return VGG16's convolutional base from timm, with its ImageNet weights or random ones.

    Raises:
        AgegenError: the weights are not in the Hugging Face cache and cannot be downloaded.
    """
    indices = tuple(index for index, _, _ in GRIDS)
    return create_timm(TIMM_NAME, pretrained=pretrained, features_only=True, out_indices=indices)
