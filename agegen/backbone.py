"""The contract between agegen and a backbone: what goes in, what comes out, how it likes to be trained."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agegen.specs import IMAGENET_MEAN, IMAGENET_STD, HeadConfig, InputSpec, TrainingDefaults

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "HeadConfig",
    "InputSpec",
    "TrainingDefaults",
    "find_contract_gap",
    "fingerprint_tensors",
]


class Backbone(nn.Module):
    """Base class of every backbone.

    A subclass sets ``input_spec``, ``feature_dim`` and ``defaults``, takes the keyword ``pretrained``
    (which it may ignore) and maps normalised images to features::

        class Tiny(Backbone):
            input_spec = InputSpec(size=32)
            feature_dim = 48
            defaults = TrainingDefaults(epochs=10, lr=1e-3, batch_size=64)

            def __init__(self, *, pretrained: bool = True) -> None: ...
            def forward(self, images): ...   # (N, 3, size, size) float -> (N, feature_dim) float

    A backbone with ``frozen = True`` is used as it is built: it stays in evaluation mode, no gradient
    reaches it, its features are computed once and cached, and checkpoints hold its ``identity`` and
    fingerprint in place of its tensors. It must therefore be the same each time it is built.
    """

    input_spec: ClassVar[InputSpec]
    feature_dim: ClassVar[int]
    defaults: ClassVar[TrainingDefaults]
    heads: ClassVar[HeadConfig] = HeadConfig()
    frozen: ClassVar[bool] = False
    identity: ClassVar[str] = ""

    def __init__(self, *, pretrained: bool = True) -> None:  # noqa: ARG002 - part of the contract
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, size, size) to features (N, feature_dim)."""
        raise NotImplementedError


def find_contract_gap(cls: type[Backbone]) -> str | None:
    """Return what a backbone class fails to declare, or None where its declarations are whole."""
    wanted: dict[str, type[Any]] = {
        "input_spec": InputSpec,
        "feature_dim": int,
        "defaults": TrainingDefaults,
        "heads": HeadConfig,
        "frozen": bool,
    }
    for name, kind in wanted.items():
        if not isinstance(getattr(cls, name, None), kind):
            return f"{cls.__name__}.{name} must be set to a {kind.__name__}"
    if cls.forward is Backbone.forward:
        return f"{cls.__name__} must define forward(images)"
    if cls.frozen and not cls.identity:
        return f"{cls.__name__} is frozen, so it must name its weights in `identity`"
    return None


def fingerprint_tensors(module: nn.Module) -> str:
    """Return a SHA-256 over the names, types, shapes and bytes of a module's whole state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
