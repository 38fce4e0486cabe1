"""What backbones declare, as plain data: nothing here needs torch, so that predicting needn't import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_AGE = 116
AGE_CLASSES = MAX_AGE + 1
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
    """

    hidden: int = 64
    dropout: float = 0.3
    feature_dropout: float = 0.0
    standardize: bool = False


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
    """

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float = 0.05
    views: int = 2
    age_balance: float = 0.0
