"""The backbone contract: inputs, outputs, training defaults, and optional hooks of a backbone plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "HeadConfig",
    "InputSpec",
    "LossSettings",
    "TrainingDefaults",
    "find_contract_gap",
    "find_feature_gap",
]

# Per channel (R, G, B), for values in 0–1: the normalization that nearly all pretrained networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """The input that a backbone expects.

    Attributes:
        size: height and width of the square input in pixels.
        mean: per channel (R, G, B), for values in 0–1.
        std: per channel (R, G, B), for values in 0–1.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_json(self) -> dict[str, Any]:
        """Return a form that survives a JSON round trip unchanged, for storing and comparing."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class HeadConfig:
    """Options of the two heads (age and gender) that all backbones share.

    Attributes:
        hidden: width of the first fully connected layer of each head.
        dropout: between the two layers of a head, 0–1.
        feature_dropout: on the features, before both heads, 0–1.
        standardize: first normalize each feature to mean 0 and variance 1; for backbones whose last layer does not
            normalize its output, especially frozen ones.
        age_hidden: width of the age head, if it differs from ``hidden``.
        gender_hidden: width of the gender head, if it differs from ``hidden``.
    """

    hidden: int = 64
    dropout: float = 0.3
    feature_dropout: float = 0.0
    standardize: bool = False
    age_hidden: int | None = None
    gender_hidden: int | None = None


@dataclass(frozen=True)
class LossSettings:
    """The weights of the terms of the training loss.

    The defaults were chosen on the validation split of UTKFace. There the L1 distance of the expected age is about 5
    years, and the KL divergence of the age distribution about 1.

    Attributes:
        sigma: standard deviation of the label distribution around an exact age, in years.
        expectation: weight of the distance in years between the estimate and the age or its bracket.
        gender: weight of the cross-entropy of gender.
        soft: distillation weight, 0–1: the share of the loss that compares with soft labels (``--soft-labels``).
    """

    sigma: float = 2.0
    expectation: float = 0.2
    gender: float = 2.0
    # On validation, 8 epochs of `scratch` improved from 5.67 to 5.48 years with a weight of one half.
    soft: float = 0.5


@dataclass(frozen=True)
class TrainingDefaults:
    """The settings that ``agegen train --model NAME`` uses unless options override them.

    Attributes:
        epochs: passes over the training split.
        lr: peak learning rate of AdamW.
        batch_size: images per step.
        weight_decay: decoupled, on weight matrices only (not on biases and norms).
        views: number of fixed views of each training image whose features are extracted, for frozen backbones; the
            first is the unchanged image, the second its mirror image, the others are shifted, rotated and scaled.
        age_balance: how strongly an epoch oversamples rare ages, 0–1: a face is drawn in proportion to the frequency
            of its age to the power of minus this; 0 draws all faces equally often.
        warmup: the fraction of all steps, 0–1, in which the learning rate rises to its peak; AdamW's second moments
            need some hundred steps to become reliable.
        ema_decay: decay of the moving average of the weights, which is what is saved. The default averages over about
            500 steps: a few epochs of a small dataset, less than one of a large dataset.
        layer_decay: factor, 0–1, by which the learning rate of each block is lower than that of the next one; None for
            one rate. Source: Bao et al., "BEiT", ICLR 2022.
        loss: see :class:`LossSettings`.
    """

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float = 0.05
    views: int = 2
    age_balance: float = 0.0
    warmup: float = 0.1
    ema_decay: float = 0.998
    layer_decay: float | None = None
    loss: LossSettings = LossSettings()


class Backbone(nn.Module):
    """Base class of all backbones.

    A subclass sets ``input_spec``, ``feature_dim`` and ``defaults``, accepts the keyword argument ``pretrained`` (which
    it may ignore), and maps normalized images to features::

        class Tiny(Backbone):
            input_spec = InputSpec(size=32)
            feature_dim = 48
            defaults = TrainingDefaults(epochs=10, lr=1e-3, batch_size=64)

            def __init__(self, *, pretrained: bool = True) -> None: ...
            def forward(self, images): ...   # (N, 3, size, size) float -> (N, feature_dim) float

    A backbone with ``frozen = True`` is never trained: it stays in evaluation mode, receives no gradient, its features
    are computed once and cached, and checkpoints store its ``identity`` and fingerprint instead of its tensors. It
    must therefore have the same weights each time it is built.

    Everything else is optional. Attributes may be set on the class or, in ``__init__``, on the instance:

    Attributes:
        heads: options of the two heads.
        frozen: see above; ``identity`` then names the weights.
        trained_parts: names of the modules and parameters to train, e.g. ``("net.layer4",)``; None for all. The rest
            keeps its weights and stays in evaluation mode.
        crop: landmark positions in the crop that the backbone expects, if they differ from those of its training data:
            eyes, nose and mouth corners (five pairs of x and y) as fractions of the crop's side, as YuNet detects
            them; see :class:`agegen.faces.alignment.AlignmentTemplate`.
        views: how many views of a face the estimates are averaged over, in validation and in prediction: 2, the crop
            and its mirror image, or 1, the crop alone, in half the time. Checkpoints store it, so that a trained model
            keeps its number when its class changes. Not to be confused with :attr:`TrainingDefaults.views`.
        argument_name: the meaning of ARGUMENT in ``--model NAME:ARGUMENT``, e.g. ``ARCHITECTURE``; "" for none.

    If the constructor also accepts the keyword arguments ``image_size`` (pixels) or ``freeze`` (bool), ``agegen train``
    passes ``--image-size`` and ``--freeze`` to it.
    """

    input_spec: InputSpec
    feature_dim: int
    defaults: TrainingDefaults
    heads: HeadConfig = HeadConfig()
    frozen: bool = False
    identity: str = ""
    trained_parts: tuple[str, ...] | None = None
    crop: tuple[tuple[float, float], ...] | None = None
    views: int = 2
    argument_name: ClassVar[str] = ""
    # The keyword arguments other than `pretrained` with which agegen built the backbone; checkpoints store them.
    build_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *, pretrained: bool = True) -> None:  # noqa: ARG002 - part of the contract
        super().__init__()

    @classmethod
    def from_argument(cls, argument: str, *, pretrained: bool = True) -> Backbone:
        """Build the backbone for ``--model NAME:ARGUMENT``; keyword arguments as for the constructor.

        Raises:
            AgegenError: the argument is invalid.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, size, size) to features (N, feature_dim)."""
        raise NotImplementedError

    def make_augmentation(self) -> Any:
        """Return an ``albumentations.Compose`` for training images (size, size, 3), uint8; None for agegen's default.

        For a frozen backbone it creates the fixed views from the third on.
        """
        return None

    def make_heads(self, config: HeadConfig) -> nn.Module | None:  # noqa: ARG002
        """Return custom heads, which map features (N, feature_dim) to :class:`agegen.model.network.Outputs`.

        None selects the two heads that all backbones share.
        """
        return None

    def group_parameters(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """Return the backbone's parameter groups in PyTorch's form; ``lr_scale`` in a group scales its learning rate.

        None selects agegen's groups: one rate, or timm's ``param_groups_layer_decay`` if ``layer_decay`` is set.
        """
        return None


def find_contract_gap(backbone: type[Backbone] | Backbone) -> str | None:
    """Return the first missing or wrong declaration of a backbone, or None if its declarations are complete."""
    cls = backbone if isinstance(backbone, type) else type(backbone)
    required: dict[str, type[Any]] = {
        "input_spec": InputSpec,
        "feature_dim": int,
        "defaults": TrainingDefaults,
        "heads": HeadConfig,
        "frozen": bool,
        "views": int,
    }
    for name, kind in required.items():
        if not isinstance(getattr(backbone, name, None), kind):
            return f"{cls.__name__}.{name} must be set to a {kind.__name__}"
    if cls.forward is Backbone.forward:
        return f"{cls.__name__} must define forward(images)"
    if backbone.views not in (1, 2):
        return f"{cls.__name__}.views must be 1 (the face) or 2 (the face and its mirror image)"
    if backbone.frozen and not backbone.identity:
        return f"{cls.__name__} is frozen, so it must name its weights in `identity`"
    return None if isinstance(backbone, type) else _find_lazy_weight(backbone) or _find_missing_part(backbone)


def _find_lazy_weight(backbone: Backbone) -> str | None:
    """Return an error for the first weight that has no size until the first forward pass, or None."""
    for name, weight in (*backbone.named_parameters(), *backbone.named_buffers()):
        if is_lazy(weight):
            return f"{type(backbone).__name__}.{name} has no size (a lazy layer). Give all sizes in __init__."
    return None


def find_feature_gap(backbone: Backbone) -> str | None:
    """Return how the features of two black images differ from (2, feature_dim), or None if they do not.

    The images are on the device of the backbone's weights; on the meta device nothing is computed.
    """
    size, training = backbone.input_spec.size, backbone.training
    device = next((weight.device for weight in backbone.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            features: Any = backbone.eval()(torch.zeros(2, 3, size, size, device=device))
    except Exception as error:  # a third-party network may raise anything
        cause = str(error).strip() or type(error).__name__
        return f"it cannot process images of {size}×{size} pixels: {cause.splitlines()[0]}"
    finally:
        backbone.train(training)
    if not isinstance(features, Tensor):
        return f"features are a {type(features).__name__}, not a tensor (N, {backbone.feature_dim})"
    shape = tuple(features.shape)
    if shape == (2, backbone.feature_dim):
        return None if features.is_floating_point() else f"features are {features.dtype}, not floating point"
    if len(shape) == 2 and shape[0] == 2:
        return f"features are {shape}, feature_dim says {backbone.feature_dim}"
    return f"features are {shape}, not (2, {backbone.feature_dim})"


def _find_missing_part(backbone: Backbone) -> str | None:
    """Return an error for the first of ``trained_parts`` that does not exist, or None."""
    names = {name for name, _ in (*backbone.named_modules(), *backbone.named_parameters())}
    for part in backbone.trained_parts or ():
        if part not in names:
            return f"{type(backbone).__name__} has no part '{part}', which trained_parts names"
    return None
