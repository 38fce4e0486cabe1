"""Model A: a small convolutional network, trained from scratch."""

from __future__ import annotations

from torch import Tensor, nn

from agegen.backbone import Backbone, HeadConfig, InputSpec, TrainingDefaults

# Doubled each time that pooling halves the sides; about 1M parameters including the heads.
CHANNELS = (32, 64, 128, 256)
# The first layer detects edges of eyes and mouths better with a kernel of 5.
KERNELS = (5, 3, 3, 3)


class ScratchBackbone(Backbone):
    """Four convolutions, each followed by max-pooling, batch norm and ReLU, then flattened.

    Pooling comes before norm and activation: the result is nearly the same, because ReLU is monotonic, and norm and
    activation then process only a quarter of the values.

    Together with the two heads of two fully connected layers the model has 8 core layers (4 convolutional, 2 + 2 dense)
    and about 1M parameters, all trained.
    """

    input_spec = InputSpec(size=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    feature_dim = CHANNELS[-1] * (96 // 2 ** len(CHANNELS)) ** 2
    defaults = TrainingDefaults(epochs=30, lr=2e-3, batch_size=64, age_balance=0.3)
    heads = HeadConfig(hidden=32, dropout=0.3)

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__(pretrained=pretrained)
        inputs = (3, *CHANNELS[:-1])
        blocks = [make_block(*channels) for channels in zip(inputs, CHANNELS, KERNELS, strict=True)]
        self.blocks = nn.Sequential(*blocks, nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, 96, 96) to features (N, 9216)."""
        features: Tensor = self.blocks(images)
        return features


def make_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return one convolution followed by 2×2 max-pooling, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
