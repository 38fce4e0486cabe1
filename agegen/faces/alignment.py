"""Alignment: from five landmarks to the square crop that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.errors import CheckpointError
from agegen.faces.detectors import DetectedFace, Detector, YuNet
from agegen.faces.geometry import Points, apply_matrix, cut_square, fit_similarity, list_corners

# The side of UTKFace's crops in pixels; ours are cut in the same size and then resized as those are.
CROP_SIZE = 200

_LEAST_CROPS = 20


@dataclass(frozen=True)
class CropContract:
    """What a model's training crops look like: where the landmarks lie, in shares of the crop's side.

    ``landmarks`` (5, 2) are given as YuNet sees them. The default is the median over UTKFace's crops,
    which have the geometry of dlib's face chips with padding 0.2.
    """

    landmarks: tuple[tuple[float, float], ...] = field(default_factory=lambda: _freeze(YuNet.reference))

    def to_json(self) -> dict[str, Any]:
        """Return the form that checkpoints hold."""
        return {"landmarks": [[round(x, 4), round(y, 4)] for x, y in self.landmarks]}

    @classmethod
    def from_json(cls, content: Any) -> CropContract:
        """Read what :meth:`to_json` gives.

        Raises:
            CheckpointError: it has another form.
        """
        try:
            points = np.array(content["landmarks"], dtype=np.float64)
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"the crop contract of the checkpoint can't be read: {error}") from error
        if points.shape != (5, 2) or not np.isfinite(points).all():
            raise CheckpointError("the crop contract of the checkpoint doesn't have five landmarks")
        return cls(_freeze(points))


def align_face(image: RGB, face: DetectedFace, detector: Detector, contract: CropContract) -> RGB:
    """Cut a face out of a photograph: (200, 200, 3), turned and scaled as the contract says."""
    target = _express_in_crop(detector, contract) * CROP_SIZE
    return cut_square(image, fit_similarity(face.landmarks, target), CROP_SIZE)


def find_corners(face: DetectedFace, detector: Detector, contract: CropContract) -> Points:
    """Return the crop's corners (4, 2) in the photograph's pixels, clockwise from its upper left."""
    back = fit_similarity(_express_in_crop(detector, contract), face.landmarks)
    return apply_matrix(back, list_corners(1.0))


def measure_contract(crops: Iterable[RGB], detector: Detector) -> CropContract | None:
    """Return the contract that a data set's crops have: the median landmarks where a face is detected.

    None where fewer than half of them, or fewer than 20, show a detectable face: drawings, say.
    """
    found, count = [], 0
    for crop in crops:
        count += 1
        if faces := detector.detect(crop):
            largest = max(faces, key=lambda face: face.box[2] - face.box[0])
            found.append(largest.landmarks / (crop.shape[1], crop.shape[0]))
    if len(found) < max(_LEAST_CROPS, count / 2):
        return None
    measured = np.median(np.array(found), axis=0)
    return CropContract(_freeze(apply_matrix(fit_similarity(detector.reference, measured), YuNet.reference)))


def _express_in_crop(detector: Detector, contract: CropContract) -> Points:
    """Return where the detector's landmarks lie in the contract's crop, in shares of its side."""
    return apply_matrix(fit_similarity(YuNet.reference, np.array(contract.landmarks)), detector.reference)


def _freeze(points: Points) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)
