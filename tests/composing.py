"""Synthetic photos: face crops pasted into larger images, rotated, scaled and blurred."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from agegen.data.images import RGB
from agegen.faces.geometry import Matrix


@dataclass(frozen=True)
class Pasted:
    """The position of a pasted face: ``matrix`` maps pixels of its crop to pixels of the image; ``side`` in pixels."""

    matrix: Matrix
    side: float


def draw_background(width: int, height: int, rng: np.random.Generator) -> RGB:
    """Return an image with soft blotches of colour."""
    blotches = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3)).astype(np.uint8)
    return cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)


def paste_face(
    image: RGB, crop: RGB, center: tuple[float, float], side: float, degrees: float = 0.0, blur: float = 0.0
) -> Pasted:
    """Paste a square crop into an image, in place.

    Args:
        image: is changed.
        crop: (n, n, 3).
        center: x and y in pixels of the image.
        side: of the pasted square, in pixels.
        degrees: clockwise rotation.
        blur: sigma of a Gaussian, in pixels of the image.
    """
    count = crop.shape[0]
    scale = side / count
    small = crop
    if scale < 0.7:
        size = max(1, round(side))
        small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    inner = side / small.shape[0]
    cos, sin = inner * np.cos(np.radians(degrees)), inner * np.sin(np.radians(degrees))
    middle = (small.shape[0] - 1) / 2
    matrix = np.array(
        [
            [cos, -sin, center[0] - cos * middle + sin * middle],
            [sin, cos, center[1] - sin * middle - cos * middle],
        ]
    )
    size = (image.shape[1], image.shape[0])
    face = cv2.warpAffine(small, matrix, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(np.ones(small.shape[:2], np.float32), matrix, size)[:, :, None]
    mixed = image * (1 - mask) + face * mask
    if blur > 0:
        mixed = mixed * (mask == 0) + cv2.GaussianBlur(mixed, (0, 0), blur) * (mask > 0)
    image[:] = mixed.round().astype(np.uint8)
    ratio = small.shape[0] / count
    to_small = np.array([[ratio, 0, 0.5 * ratio - 0.5], [0, ratio, 0.5 * ratio - 0.5], [0, 0, 1]])
    return Pasted(matrix @ to_small, side)


def compose(crop: RGB, rng: np.random.Generator, sides: tuple[float, float], max_degrees: float) -> tuple[RGB, Pasted]:
    """Return an image (480, 640, 3) with one face at a random size, rotation, position and blur."""
    image = draw_background(640, 480, rng)
    side = float(np.exp(rng.uniform(*np.log(sides))))
    half = side * 0.5
    center = (rng.uniform(half, 640 - half), rng.uniform(min(half, 239), max(480 - half, 241)))
    # Small faces have no detail to lose.
    blur = rng.uniform(0, 0.01) * side
    degrees = rng.uniform(-max_degrees, max_degrees)
    return image, paste_face(image, crop, center, side, degrees, blur if blur > 0.3 else 0.0)
