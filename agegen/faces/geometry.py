"""Faces and detectors as types, and their geometry: similarities between landmarks, squares cut out by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB

Points = NDArray[np.float64]

Matrix = NDArray[np.float64]


def fit_similarity(source: Points, target: Points) -> Matrix:
    """Return the 2×3 matrix that turns, scales and shifts ``source`` (n, 2) closest to ``target`` (n, 2).

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    IEEE TPAMI 1991; here in complex numbers: target ≈ factor · source + shift.
    """
    points = source[:, 0] + 1j * source[:, 1]
    wanted = target[:, 0] + 1j * target[:, 1]
    centred = points - points.mean()
    factor = np.vdot(centred, wanted - wanted.mean()) / max(np.vdot(centred, centred).real, 1e-12)
    shift = wanted.mean() - factor * points.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def apply_matrix(matrix: Matrix, points: Points) -> Points:
    """Return points (n, 2) moved by a 2×3 matrix."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float64)


def invert_matrix(matrix: Matrix) -> Matrix:
    """Return the 2×3 matrix that undoes another."""
    return np.asarray(np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2], dtype=np.float64)


def measure_turn(matrix: Matrix) -> float:
    """Return by how many degrees a similarity turns, clockwise in a picture, -180 to 180."""
    return float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))


def list_corners(side: float) -> Points:
    """Return the corners (4, 2) of a square, clockwise from its upper left."""
    return np.array([[0.0, 0.0], [side, 0.0], [side, side], [0.0, side]])


def cut_square(image: RGB, matrix: Matrix, side: int) -> RGB:
    """Cut (side, side, 3) out of a picture, whose pixels ``matrix`` moves to the square's.

    What lies beyond the picture's edges is black, as in dlib's face chips.
    """
    import cv2

    part, matrix = _shrink_part(image, matrix, side)
    square: RGB = cv2.warpAffine(part, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return square


def _shrink_part(image: RGB, matrix: Matrix, side: int) -> tuple[RGB, Matrix]:
    """Return the part of a picture that is needed, shrunk by area where a plain warp would alias."""
    import cv2

    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    corners = apply_matrix(invert_matrix(matrix), list_corners(side))
    size = np.array([image.shape[1], image.shape[0]])
    # Clipped before the cast: a degenerate fit may ask for corners beyond all integers.
    low = np.floor(corners.min(axis=0) - 2).clip(0, size).astype(int)
    high = np.ceil(corners.max(axis=0) + 2).clip(0, size).astype(int)
    if (high - low).min() < 2:
        return np.zeros((2, 2, 3), dtype=np.uint8), matrix
    part = image[low[1] : high[1], low[0] : high[0]]
    shrunk = np.maximum(np.round((high - low) * min(scale, 1.0)).astype(int), 1)
    if scale < 0.7:
        part = cv2.resize(part, (int(shrunk[0]), int(shrunk[1])), interpolation=cv2.INTER_AREA)
    ratio = (high - low) / np.array([part.shape[1], part.shape[0]])
    # A pixel's centre counts: x = low + (small + 0.5) · ratio − 0.5, put into the matrix.
    shift = low + 0.5 * ratio - 0.5
    inner = np.array([[ratio[0], 0.0, shift[0]], [0.0, ratio[1], shift[1]], [0.0, 0.0, 1.0]])
    return np.ascontiguousarray(part), np.asarray(matrix @ inner, dtype=np.float64)


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photograph, in its pixels.

    Attributes:
        box: (left, top, right, bottom); may reach beyond the photograph's edges.
        landmarks: (5, 2), x and y of the eye on the left of the picture, the one on the right, the tip of
            the nose, the mouth's left and right corner.
        score: 0–1.
        look: the score, 0–1, of a second look at the face alone; None where there was none, or it found nothing.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float
    look: float | None = None


class Detector(Protocol):
    """Finds faces. An entry point of the group ``agegen.detectors`` names a class, or a function, that builds one.

    ``reference`` (5, 2) is where this detector sees the landmarks of a UTKFace crop on average, in shares of
    the crop's side: detectors disagree by some per cent on where an eye is, and this cancels it.
    """

    name: str
    reference: Points

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in a photograph (height, width, 3), from left to right."""
