"""The default model: a small residual network of 3×3 convolutions, trained from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agegen.backbone import Backbone, HeadConfig, InputSpec, TrainingDefaults

# Plain instead of depthwise convolutions: on CPUs they are several times faster at the same accuracy, because depthwise
# ones are limited by memory bandwidth. Channels of the stem, then channels and residual blocks of each stage.
STEM = 16
# About as many parameters as `scratch`, with a fifth of its multiply-adds.
WIDTHS = (24, 48, 80, 128)
BLOCKS = (1, 2, 2, 2)


class CompactBackbone(Backbone):
    """A stem with stride 2 and four stages of residual blocks; the last map is pooled by mean and by maximum.

    The stem and each stage halve the resolution, from 96 to 3 pixels. 0.92M parameters including the heads, 29 million
    multiply-adds per view.
    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    input_spec = InputSpec(size=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    feature_dim = 2 * WIDTHS[-1]
    defaults = TrainingDefaults(epochs=60, lr=3e-3, batch_size=128, age_balance=0.2)
    heads = HeadConfig(hidden=128, dropout=0.2)

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__(pretrained=pretrained)
        self.stem = make_convolution(3, STEM, stride=2)
        stages: list[nn.Module] = []
        width = STEM
        for outputs, count in zip(WIDTHS, BLOCKS, strict=True):
            for block in range(count):
                stages.append(ResidualBlock(width, outputs, stride=1 if block else 2))
                width = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, 96, 96) to features (N, 256)."""
        maps = self.stages(F.relu(self.stem(images)))
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = make_convolution(inputs, outputs, stride=stride)
        self.second = make_convolution(outputs, outputs)
        # Zero-initialized, so that a block starts as its shortcut; deep networks then train faster. Source: Goyal et
        # al., "Accurate, Large Minibatch SGD", 2017, section 5.1.
        last = self.second[1]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else make_convolution(inputs, outputs, kernel=1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h / stride, w / stride)."""
        return F.relu(self.second(F.relu(self.first(maps))) + self.shortcut(maps))


def make_convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias, followed by batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )
