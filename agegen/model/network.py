"""The network: a backbone with an age head and a gender head, and the averaging over the views of a face."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agegen.backbone import Backbone, HeadConfig
from agegen.data.images import RGB
from agegen.data.labels import AGE_CLASSES
from agegen.machine import Compute


class Outputs(NamedTuple):
    """Raw outputs for N faces.

    ``age_logits`` (N, 117) over the whole years 0–116; ``gender_logit`` (N,), positive for female.
    """

    age_logits: Tensor
    gender_logit: Tensor


class AgeGenderModel(nn.Module):
    """A backbone and the two heads: from images to age distributions and gender logits.

    ``views``: over how many views of a face its users average the outputs; see :func:`make_views`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, heads: HeadConfig | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.views = backbone.views
        self.head_config = heads or backbone.heads
        custom = backbone.make_heads(self.head_config)
        self.heads: nn.Module = TwoHeads(backbone.feature_dim, self.head_config) if custom is None else custom
        spec = backbone.input_spec
        self.register_buffer("mean", _make_channel_tensor(spec.mean), persistent=False)
        self.register_buffer("std", _make_channel_tensor(spec.std), persistent=False)
        if backbone.frozen:
            backbone.requires_grad_(False)
            backbone.eval()
        elif backbone.trained_parts is not None:
            for name, parameter in backbone.named_parameters():
                parameter.requires_grad_(_is_inside(name, backbone.trained_parts))
        # The fastest memory format for convolutions, on CPUs and on GPUs.
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> AgeGenderModel:
        """Set the training mode of all modules except frozen ones, whose norms and dropouts stay in evaluation mode."""
        super().train(mode)
        if self.backbone.frozen:
            self.backbone.eval()
        elif (parts := self.backbone.trained_parts) is not None:
            for name, module in self.backbone.named_modules():
                contains_parts = not name or any(part.startswith(f"{name}.") for part in parts)
                if not (contains_parts or _is_inside(name, parts)):
                    # Not `module.eval()`, which would also change the trained parts inside the module.
                    module.training = False
        return self

    def forward(self, images: Tensor) -> Outputs:
        """Map RGB images (N, 3, size, size), uint8 or float with values 0–255, to :class:`Outputs`."""
        outputs: Outputs = self.heads(self.extract_features(images))
        return outputs

    def extract_features(self, images: Tensor) -> Tensor:
        """Map RGB images (N, 3, size, size), uint8 or float with values 0–255, to features (N, feature_dim)."""
        normalized = (images.float() - self.mean) / self.std
        normalized = normalized.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            features: Tensor = self.backbone(normalized)
        return features


def _make_channel_tensor(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).mul(255.0).view(1, 3, 1, 1)


def _is_inside(name: str, parts: tuple[str, ...]) -> bool:
    """Return whether a module or parameter is one of the parts or belongs to one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


class TwoHeads(nn.Module):
    """The shared age and gender heads: from features (N, ``feature_dim``) to :class:`Outputs`.

    The age head predicts a distribution over whole years, whose expectation is the estimate (DEX, Rothe et al. 2015;
    DLDL-v2, Gao et al. 2018). The gender head predicts one logit, of P(female).
    """

    def __init__(self, feature_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(feature_dim, affine=False) if config.standardize else nn.Identity()
        self.dropout = nn.Dropout(config.feature_dropout)
        self.age = make_branch(feature_dim, config.age_hidden or config.hidden, AGE_CLASSES, config.dropout)
        self.gender = make_branch(feature_dim, config.gender_hidden or config.hidden, 1, config.dropout)

    def forward(self, features: Tensor) -> Outputs:
        """Map features (N, feature_dim) to the outputs of both heads."""
        features = self.dropout(self.norm(features))
        return Outputs(self.age(features), self.gender(features).squeeze(1))


def make_branch(features: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Return one head: two fully connected layers with batch norm, ReLU and dropout between them."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


def make_views(images: list[RGB], views: int) -> list[Tensor]:
    """Return the first ``views`` views of images, unchanged and mirrored, each (N, 3, size, size) uint8."""
    plain = stack_images(images)
    return [plain] if views == 1 else [plain, stack_images([mirror_image(image) for image in images])]


def mirror_image(image: RGB) -> RGB:
    """Return an image flipped horizontally."""
    return np.ascontiguousarray(image[:, ::-1])


def stack_images(images: list[RGB]) -> Tensor:
    """Return RGB images of one size as a tensor (N, 3, size, size), uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def run_views(network: nn.Module, views: list[Tensor], compute: Compute) -> list[Outputs]:
    """Return a network's outputs for each view of a batch; call it in inference mode."""
    with compute.autocast():
        return [network(view.to(compute.device, non_blocking=True)) for view in views]


def average_outputs(views: list[Outputs]) -> tuple[Tensor, Tensor]:
    """Return the age distributions (N, 117) and P(female) (N,) of N faces, averaged over their views."""
    ages = torch.stack([torch.softmax(view.age_logits.float(), dim=1) for view in views])
    genders = torch.stack([torch.sigmoid(view.gender_logit.float()) for view in views])
    return ages.mean(dim=0), genders.mean(dim=0)


def expect_age(age_probabilities: Tensor) -> Tensor:
    """Return the expected age in years (N,) of age distributions (N, 117)."""
    years = torch.arange(age_probabilities.shape[1], device=age_probabilities.device)
    return (age_probabilities * years.to(age_probabilities.dtype)).sum(dim=1)


def compute_std(age_probabilities: Tensor) -> Tensor:
    """Return the standard deviation in years (N,) of age distributions (N, 117)."""
    years = torch.arange(age_probabilities.shape[1], device=age_probabilities.device, dtype=age_probabilities.dtype)
    variance = (age_probabilities * years**2).sum(dim=1) - expect_age(age_probabilities) ** 2
    return variance.clamp(min=0).sqrt()


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the number of all parameters, and of the trainable ones."""
    total = sum(parameter.numel() for parameter in module.parameters())
    return total, sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
