"""The optimiser: AdamW through timm, with the parameter groups that a backbone asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from agegen.model.network import AgeGenderModel
from agegen.train.config import FitSettings


def make_optimizer(network: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; biases and norms don't decay."""
    from timm.optim import create_optimizer_v2

    # In one piece where there is a GPU, which else waits for Python; on CPUs the usual steps stay to the last digit.
    fused = {"fused": True} if next(network.parameters()).is_cuda else {}
    groups = group_parameters(network, settings)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, "adamw", settings.lr, **fused)
    return optimizer


def group_parameters(network: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Return the groups of trainable parameters: the backbone's own, by layers, or those that decay and those not."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    own = None
    if isinstance(network, AgeGenderModel):
        own = network.backbone.group_parameters(settings.weight_decay, settings.layer_decay)
        if own is None and settings.layer_decay is not None:
            own = param_groups_layer_decay(
                network.backbone, settings.weight_decay, layer_decay=settings.layer_decay, weight_decay_exclude_1d=True
            )
        if own is not None:
            return [*own, *param_groups_weight_decay(network.heads, settings.weight_decay)]
    # In this order the states of interrupted trainings number their parameters.
    return list(reversed(param_groups_weight_decay(network, settings.weight_decay)))
