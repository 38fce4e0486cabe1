"""Pictures composed of faces: crops pasted, turned, scaled and blurred into larger pictures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from agegen.data.images import RGB
from agegen.faces.geometry import Matrix


@dataclass(frozen=True)
class Pasted:
    """Where a face was pasted: its crop's pixels go to the picture's by ``matrix``; ``side`` in pixels."""

    matrix: Matrix
    side: float


def draw_background(width: int, height: int, rng: np.random.Generator) -> RGB:
    """Return soft blotches of colour."""
    blotches = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3)).astype(np.uint8)
    return cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)


def paste_face(
    picture: RGB, crop: RGB, center: tuple[float, float], side: float, turn: float = 0.0, blur: float = 0.0
) -> Pasted:
    """Paste a square crop into a picture, in place.

    Args:
        picture: changed by this.
        crop: (n, n, 3).
        center: x and y in the picture's pixels.
        side: of the pasted square, in pixels.
        turn: degrees, clockwise.
        blur: sigma of a Gaussian, in the picture's pixels.
    """
    count = crop.shape[0]
    scale = side / count
    small = crop
    if scale < 0.7:
        size = max(1, round(side))
        small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    inner = side / small.shape[0]
    cos, sin = inner * np.cos(np.radians(turn)), inner * np.sin(np.radians(turn))
    middle = (small.shape[0] - 1) / 2
    matrix = np.array(
        [
            [cos, -sin, center[0] - cos * middle + sin * middle],
            [sin, cos, center[1] - sin * middle - cos * middle],
        ]
    )
    size = (picture.shape[1], picture.shape[0])
    face = cv2.warpAffine(small, matrix, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(np.ones(small.shape[:2], np.float32), matrix, size)[:, :, None]
    mixed = picture * (1 - mask) + face * mask
    if blur > 0:
        mixed = mixed * (mask == 0) + cv2.GaussianBlur(mixed, (0, 0), blur) * (mask > 0)
    picture[:] = mixed.round().astype(np.uint8)
    ratio = small.shape[0] / count
    to_small = np.array([[ratio, 0, 0.5 * ratio - 0.5], [0, ratio, 0.5 * ratio - 0.5], [0, 0, 1]])
    return Pasted(matrix @ to_small, side)


def compose(crop: RGB, rng: np.random.Generator, sides: tuple[float, float], most_turn: float) -> tuple[RGB, Pasted]:
    """Return a picture (480, 640, 3) with one face of drawn size, turn, place and blur."""
    picture = draw_background(640, 480, rng)
    side = float(np.exp(rng.uniform(*np.log(sides))))
    reach = side * 0.5
    center = (rng.uniform(reach, 640 - reach), rng.uniform(min(reach, 239), max(480 - reach, 241)))
    # Small faces have no detail to lose.
    blur = rng.uniform(0, 0.01) * side
    pasted = paste_face(picture, crop, center, side, rng.uniform(-most_turn, most_turn), blur if blur > 0.3 else 0.0)
    return picture, pasted
