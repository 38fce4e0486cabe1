"""Views of a face: the plain and the mirrored picture, run through a network and averaged."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from agegen.data.images import RGB
from agegen.machine import Compute
from agegen.model.network import Outputs, expect_age


def mirror_image(image: RGB) -> RGB:
    """Return the picture mirrored left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def make_views(images: list[RGB]) -> list[Tensor]:
    """Return the plain and the mirrored view of pictures, each (N, 3, size, size) uint8."""
    return [stack_images(images), stack_images([mirror_image(image) for image in images])]


def stack_images(images: list[RGB]) -> Tensor:
    """Return RGB pictures of one size as a tensor (N, 3, size, size), uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def average_outputs(views: list[Outputs]) -> tuple[Tensor, Tensor]:
    """Return the age distributions (N, 117) and P(female) (N,), averaged over the views of N faces."""
    ages = torch.stack([torch.softmax(view.age_logits.float(), dim=1) for view in views])
    genders = torch.stack([torch.sigmoid(view.gender_logit.float()) for view in views])
    return ages.mean(dim=0), genders.mean(dim=0)


def measure_spread(age_probabilities: Tensor) -> Tensor:
    """Return the standard deviation in years (N,) of age distributions (N, 117)."""
    years = torch.arange(age_probabilities.shape[1], device=age_probabilities.device, dtype=age_probabilities.dtype)
    variance = (age_probabilities * years**2).sum(dim=1) - expect_age(age_probabilities) ** 2
    return variance.clamp(min=0).sqrt()


def run_views(network: nn.Module, views: list[Tensor], compute: Compute) -> list[Outputs]:
    """Return a network's outputs for each view of a batch; to be called in inference mode."""
    with compute.autocast():
        return [network(view.to(compute.device, non_blocking=True)) for view in views]
