"""Augmentation with albumentations, built from a backbone's input spec; images stay RGB uint8."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.backbone import InputSpec
from agegen.data.images import RGB, resize_image
from agegen.errors import PluginError

if TYPE_CHECKING:
    import albumentations


def import_albumentations() -> Any:
    """Import albumentations, and keep OpenCV from starting threads of its own."""
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    return albumentations


class Augmentation:
    """Random views of a face; the same seed gives the same view, in whichever process."""

    def __init__(self, compose: albumentations.Compose, size: int) -> None:
        self._compose = compose
        self._size = size

    def __call__(self, image: RGB, seed: tuple[int, ...]) -> RGB:
        """Return one view (size, size, 3) of an RGB picture, drawn from ``seed``.

        Raises:
            PluginError: a backbone's own augmentation gives something else.
        """
        rng = np.random.default_rng(seed)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        augmented = self._compose(image=resize_image(image, self._size))["image"]
        if augmented.shape != (self._size, self._size, 3) or augmented.dtype != np.uint8:
            raise PluginError(
                f"the backbone's augmentation gives {augmented.dtype} {augmented.shape}, not uint8 "
                f"{(self._size, self._size, 3)}"
            )
        return np.ascontiguousarray(augmented)

    def __str__(self) -> str:
        return json.dumps(self._compose.to_dict(), sort_keys=True, default=str)


def build_train_augmentation(spec: InputSpec, own: albumentations.Compose | None = None) -> Augmentation:
    """Return the backbone's own augmentation, or agegen's: mirror, shift, turn, scale, light, colour, damage."""
    a = import_albumentations()
    if own is not None:
        return Augmentation(own, spec.size)
    steps = [
        a.HorizontalFlip(p=0.5),
        _make_affine(a, shift=0.06, turn=15, scale=0.15, p=0.9),
        a.RandomBrightnessContrast(0.3, 0.3, p=0.7),
        a.HueSaturationValue(8, 30, 15, p=0.4),
        a.ToGray(p=0.05),
        a.OneOf([a.GaussianBlur((3, 5)), a.Downscale((0.4, 0.8)), a.ImageCompression("jpeg", (30, 80))], p=0.15),
        a.CoarseDropout((1, 2), (0.1, 0.3), (0.1, 0.3), fill=0, p=0.4),
    ]
    return Augmentation(a.Compose(steps), spec.size)


def build_view_augmentation(spec: InputSpec, own: albumentations.Compose | None = None) -> Augmentation:
    """Return the backbone's own augmentation, or the milder one of agegen, for the fixed views of a frozen backbone."""
    a = import_albumentations()
    if own is not None:
        return Augmentation(own, spec.size)
    steps = [
        _make_affine(a, shift=0.04, turn=8, scale=0.08, p=1.0),
        a.RandomBrightnessContrast(0.15, 0.15, p=0.5),
    ]
    return Augmentation(a.Compose(steps), spec.size)


def _make_affine(a: Any, shift: float, turn: float, scale: float, p: float) -> Any:
    import cv2

    return a.Affine(
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        rotate=(-turn, turn),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )
