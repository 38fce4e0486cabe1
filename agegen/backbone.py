"""The contract between agegen and a backbone: what goes in, what comes out, how it likes to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "HeadConfig",
    "InputSpec",
    "LossSettings",
    "TrainingDefaults",
    "find_contract_gap",
]

# Of ImageNet's pictures, per channel: what nearly all pretrained networks were fed with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """What a backbone wants to see.

    Attributes:
        size: height and width of the square input in pixels.
        mean: per channel (R, G, B), for values in 0–1.
        std: per channel (R, G, B), for values in 0–1.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_json(self) -> dict[str, Any]:
        """Return the form that JSON gives back, to be stored and compared with what was stored."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class HeadConfig:
    """Options of the two-branch heads that every backbone shares.

    Attributes:
        hidden: width of each branch's first fully connected layer.
        dropout: between a branch's two layers, 0–1.
        feature_dropout: on the features, before both branches, 0–1.
        standardize: bring each feature to mean 0 and variance 1 first; for backbones whose last
            layer does not do it, frozen ones above all.
        age_hidden: that width in the age branch, where it isn't ``hidden``.
        gender_hidden: the same in the gender branch.
    """

    hidden: int = 64
    dropout: float = 0.3
    feature_dropout: float = 0.0
    standardize: bool = False
    age_hidden: int | None = None
    gender_hidden: int | None = None


@dataclass(frozen=True)
class LossSettings:
    """How the errors in age and gender are weighed.

    The defaults were chosen on the validation split of UTKFace; there the loss of age in years is of order 5, its KL
    divergence of order 1.

    Attributes:
        sigma: of the label distribution around an exact age, in years.
        expectation: weight of the distance in years between the estimate and the age or its bracket.
        gender: weight of the cross-entropy of gender.
        soft: weight, 0–1, of what teachers estimate (``--soft-labels``) against what labels say.
    """

    sigma: float = 2.0
    expectation: float = 0.2
    gender: float = 2.0
    # Half, as far as validation can tell: 8 epochs of scratch went from 5.67 to 5.48 years with it.
    soft: float = 0.5


@dataclass(frozen=True)
class TrainingDefaults:
    """What plain ``agegen train --model NAME`` uses where the user gives nothing.

    Attributes:
        epochs: passes over the training split.
        lr: peak learning rate of AdamW.
        batch_size: images per step.
        weight_decay: decoupled, on weight matrices only (not on biases and norms).
        views: for frozen backbones, how many fixed views of each training image are extracted;
            the first is the plain image, the second its mirror, the rest shifted, turned and scaled.
        age_balance: how strongly an epoch favours rare ages, 0–1: a face counts in proportion to the
            frequency of its age to the power of minus this; 0 takes the data as it is.
        warmup: the share of all steps, 0–1, over which the rate rises to its peak; AdamW's second moments need some
            hundred steps before they can be trusted.
        ema_decay: of the average of the weights, which is what is kept: over some 500 steps by default, a few epochs
            of a small set, less than one of a large one.
        layer_decay: by which factor, 0–1, each block learns slower than the one after it; None for one rate.
            Source: Bao et al., "BEiT", ICLR 2022.
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

    All else is optional. Attributes may be set on the class or, in ``__init__``, on the instance:

    Attributes:
        heads: options of the two heads.
        frozen: see above; ``identity`` then names the weights.
        trained_parts: names of the modules and parameters that train (``("net.layer4",)``), None for all; the rest
            stays as it was built, in evaluation mode.
        crop: where the crop that it wants to see has the face, where that isn't the crop of its training data: the
            eyes, the nose and the corners of the mouth (five pairs of x and y), in shares of the crop's side, as YuNet
            finds them; see :class:`agegen.faces.alignment.AlignmentTemplate`.
        argument_name: what ARGUMENT stands for in ``--model NAME:ARGUMENT``, e.g. ``ARCHITECTURE``; "" for none.

    A constructor may take further keywords, ``image_size`` (pixels) and ``freeze`` (bool): to one that does
    ``agegen train`` hands on ``--image-size`` and ``--freeze``.
    """

    input_spec: InputSpec
    feature_dim: int
    defaults: TrainingDefaults
    heads: HeadConfig = HeadConfig()
    frozen: bool = False
    identity: str = ""
    trained_parts: tuple[str, ...] | None = None
    crop: tuple[tuple[float, float], ...] | None = None
    argument_name: ClassVar[str] = ""
    # Keywords that it was built with besides `pretrained`; agegen sets them, and checkpoints remember them.
    build_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *, pretrained: bool = True) -> None:  # noqa: ARG002 - part of the contract
        super().__init__()

    @classmethod
    def from_argument(cls, argument: str, *, pretrained: bool = True) -> Backbone:
        """Build the backbone that ``--model NAME:ARGUMENT`` asks for; keywords as for the constructor.

        Raises:
            AgegenError: there is none for this argument.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, size, size) to features (N, feature_dim)."""
        raise NotImplementedError

    def make_augmentation(self) -> Any:
        """Return an ``albumentations.Compose`` for training pictures (size, size, 3), uint8; None for agegen's own.

        Where the backbone is frozen it makes the fixed views from the third on.
        """
        return None

    def make_heads(self, config: HeadConfig) -> nn.Module | None:  # noqa: ARG002
        """Return heads of its own, which map features (N, feature_dim) to :class:`agegen.model.network.Outputs`.

        None stands for the two heads that all backbones share.
        """
        return None

    def group_parameters(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """Return the backbone's parameter groups, as optimisers take them; ``lr_scale`` in a group scales its rate.

        None leaves it to agegen: one rate, or with ``layer_decay`` timm's ``param_groups_layer_decay``.
        """
        return None


def find_contract_gap(backbone: type[Backbone] | Backbone) -> str | None:
    """Return what a backbone fails to declare, or None where its declarations are whole."""
    cls = backbone if isinstance(backbone, type) else type(backbone)
    wanted: dict[str, type[Any]] = {
        "input_spec": InputSpec,
        "feature_dim": int,
        "defaults": TrainingDefaults,
        "heads": HeadConfig,
        "frozen": bool,
    }
    for name, kind in wanted.items():
        if not isinstance(getattr(backbone, name, None), kind):
            return f"{cls.__name__}.{name} must be set to a {kind.__name__}"
    if cls.forward is Backbone.forward:
        return f"{cls.__name__} must define forward(images)"
    if backbone.frozen and not backbone.identity:
        return f"{cls.__name__} is frozen, so it must name its weights in `identity`"
    return None if isinstance(backbone, type) else _find_lost_part(backbone)


def _find_lost_part(backbone: Backbone) -> str | None:
    """Return which of ``trained_parts`` isn't there, None where all are."""
    names = {name for name, _ in (*backbone.named_modules(), *backbone.named_parameters())}
    for part in backbone.trained_parts or ():
        if part not in names:
            return f"{type(backbone).__name__} has no part '{part}', which trained_parts names"
    return None
