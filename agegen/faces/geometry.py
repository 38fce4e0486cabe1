"""Detected faces, the detector protocol, and similarity transforms between sets of landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.data.records import Box

# (n, 2): x and y of n points.
Points = NDArray[np.float64]
# 2×3: an affine transform of points.
Matrix = NDArray[np.float64]

# Below this scale a bilinear warp aliases, so the image is first downsampled by area.
_ALIASING_SCALE = 0.7
# Of a face's height: heads in one row of a group differ by less, and rows are farther apart.
_ROW_SHARE = 0.5


@dataclass(frozen=True)
class DetectedFace:
    """A face found in an image; coordinates in pixels of that image.

    Attributes:
        box: bounding box (left, top, right, bottom); may extend beyond the image.
        landmarks: (5, 2), x and y of the eye on the left side of the image, the eye on the right side, the tip of the
            nose, the left and the right corner of the mouth.
        score: detection score, 0–1; NaN for bounding boxes from another detector.
        refined_score: detection score, 0–1, in a close-up of the face; None if the detector takes no close-ups or
            found no face in it.
    """

    box: Box
    landmarks: Points
    score: float
    refined_score: float | None = None


@dataclass(frozen=True)
class GivenFace:
    """A face in pixels of the file: its bounding box (left, top, right, bottom) and, if known, five landmarks (x, y).

    The landmarks are the eye on the left side of the image, the eye on the right side, the tip of the nose, the left
    and the right corner of the mouth.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...] | None = None


class Detector(Protocol):
    """Detects faces. An entry point of the group ``agegen.detectors`` names a class or function that creates one.

    ``reference`` (5, 2) holds the landmarks that this detector finds on average in the crops of UTKFace, as fractions
    of the crop's side. Detectors place landmarks differently by a few per cent; ``reference`` corrects for that.
    """

    name: str
    reference: Points

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in an image (height, width, 3), in the order of :func:`order_by_rows`."""


def order_by_rows(faces: Sequence[DetectedFace]) -> list[DetectedFace]:
    """Return faces as people read: by rows from top to bottom, each from left to right.

    A face belongs to the row above it if its centre is less than half a face below that row's.
    """
    rows: list[list[DetectedFace]] = []
    for face in sorted(faces, key=lambda face: (face.box[1] + face.box[3], face.box[0])):
        boxes = [member.box for member in rows[-1]] if rows else []
        center = sum(box[1] + box[3] for box in boxes) / 2
        height = sum(box[3] - box[1] for box in boxes)
        # Sums over the row on both sides, instead of means.
        if boxes and len(boxes) * (face.box[1] + face.box[3]) / 2 - center < _ROW_SHARE * height:
            rows[-1].append(face)
        else:
            rows.append([face])
    return [face for row in rows for face in sorted(row, key=lambda face: (face.box[0], face.box[1]))]


def fit_similarity(source: Points, target: Points) -> Matrix:
    """Return the 2×3 similarity transform (rotation, scale, shift) that best maps ``source`` (n, 2) to ``target``.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    IEEE TPAMI 1991; here in complex numbers: target ≈ factor · source + shift.
    """
    points = source[:, 0] + 1j * source[:, 1]
    targets = target[:, 0] + 1j * target[:, 1]
    centred = points - points.mean()
    factor = np.vdot(centred, targets - targets.mean()) / max(np.vdot(centred, centred).real, 1e-12)
    shift = targets.mean() - factor * points.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def apply_matrix(matrix: Matrix, points: Points) -> Points:
    """Return points (n, 2) transformed by a 2×3 matrix."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float64)


def invert_matrix(matrix: Matrix) -> Matrix:
    """Return the inverse of a 2×3 matrix."""
    return np.asarray(np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2], dtype=np.float64)


def compute_scale(matrix: Matrix) -> float:
    """Return the factor by which a similarity transform enlarges."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def compute_rotation(matrix: Matrix) -> float:
    """Return the rotation of a similarity transform in degrees, clockwise in image coordinates, -180 to 180."""
    return float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))


def list_corners(side: float) -> Points:
    """Return the corners (4, 2) of a square, clockwise from the upper left."""
    return np.array([[0.0, 0.0], [side, 0.0], [side, side], [0.0, side]])


def warp_square(image: RGB, matrix: Matrix, side: int) -> RGB:
    """Extract a square (side, side, 3) from an image; ``matrix`` maps the image's pixels to those of the square.

    Pixels beyond the edges of the image are black, as in dlib's face chips.
    """
    import cv2

    part, matrix = _downsample_part(image, matrix, side)
    square: RGB = cv2.warpAffine(part, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return square


def _downsample_part(image: RGB, matrix: Matrix, side: int) -> tuple[RGB, Matrix]:
    """Return the required part of an image, downsampled by area where a warp would alias, and the matrix for it."""
    import cv2

    scale = compute_scale(matrix)
    corners = apply_matrix(invert_matrix(matrix), list_corners(side))
    size = np.array([image.shape[1], image.shape[0]])
    # Clip before the cast: a degenerate fit may give corners outside the range of integers.
    low = np.floor(corners.min(axis=0) - 2).clip(0, size).astype(int)
    high = np.ceil(corners.max(axis=0) + 2).clip(0, size).astype(int)
    if (high - low).min() < 2:
        return np.zeros((2, 2, 3), dtype=np.uint8), matrix
    part = image[low[1] : high[1], low[0] : high[0]]
    if scale < _ALIASING_SCALE:
        small = np.maximum(np.round((high - low) * scale).astype(int), 1)
        part = cv2.resize(part, (int(small[0]), int(small[1])), interpolation=cv2.INTER_AREA)
    ratio = (high - low) / np.array([part.shape[1], part.shape[0]])
    # Pixel centres: x = low + (small + 0.5) · ratio − 0.5, written as a matrix.
    shift = low + 0.5 * ratio - 0.5
    to_image = np.array([[ratio[0], 0.0, shift[0]], [0.0, ratio[1], shift[1]], [0.0, 0.0, 1.0]])
    return np.ascontiguousarray(part), np.asarray(matrix @ to_image, dtype=np.float64)
