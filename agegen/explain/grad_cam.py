"""Grad-CAM: where the last convolution sees what raises the age, or speaks for the gender that is named.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017;
computed by the package ``grad-cam``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agegen.data.images import RGB
from agegen.errors import AgegenError
from agegen.explain.occlusion import Maps
from agegen.model.network import AgeGenderModel, Outputs, expect_age
from agegen.model.views import stack_images


class _Scores(nn.Module):
    """A model whose outputs are what is explained: the age in years, and the logit of the gender that is named."""

    def __init__(self, model: AgeGenderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        # Not by the model's own way, which takes no gradients through a frozen base.
        outputs: Outputs = model.heads(model.backbone((images.float() - model.mean) / model.std))
        age = expect_age(torch.softmax(outputs.age_logits.float(), dim=1))
        return torch.stack([age, outputs.gender_logit.abs()], dim=1)


def map_gradients(model: AgeGenderModel, crop: RGB) -> Maps:
    """Return the two maps (side, side), 0–1 each, of a crop (side, side, 3) of the model's own size.

    Raises:
        AgegenError: the package grad-cam isn't installed, or the backbone has no convolution.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise AgegenError('--method grad-cam needs another package: pip install "agegen[explain]"') from error
    model.requires_grad_(True).eval()
    images = stack_images([crop]).float()
    with GradCAM(_Scores(model), [find_last_convolution(model.backbone)]) as cam:
        maps = [cam(images.clone(), [ClassifierOutputTarget(index)])[0] for index in range(2)]
    return Maps(*(np.asarray(found, dtype=np.float64) for found in maps))


def find_last_convolution(backbone: nn.Module) -> Any:
    """Return the last convolution that sees more than a point.

    Raises:
        AgegenError: there is none.
    """
    found = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1]
    if not found:
        raise AgegenError("this backbone has no convolution for --method grad-cam; use --method occlusion")
    return found[-1]
