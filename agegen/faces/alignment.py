"""Alignment: from five landmarks to the square crop that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.errors import CheckpointError
from agegen.faces.geometry import DetectedFace, Detector, Points, apply_matrix, cut_square, fit_similarity

# The side of UTKFace's crops in pixels; ours are cut in the same size and then resized as those are.
CROP_SIZE = 200
# The median landmarks (5, 2) of UTKFace's crops as YuNet sees them, in shares of the crop's side.
REFERENCE_LANDMARKS = np.array(
    [[0.2968, 0.2853], [0.6843, 0.2824], [0.4885, 0.5019], [0.3300, 0.6742], [0.6599, 0.6702]]
)


@dataclass(frozen=True)
class AlignmentTemplate:
    """What a model's training crops look like: where the landmarks lie, in shares of the crop's side.

    ``landmarks`` (5, 2) are given as YuNet sees them. The default is the median over UTKFace's crops,
    which have the geometry of dlib's face chips with padding 0.2.
    """

    landmarks: tuple[tuple[float, float], ...] = field(default_factory=lambda: _freeze(REFERENCE_LANDMARKS))

    def to_json(self) -> dict[str, Any]:
        """Return the form that checkpoints hold."""
        return {"landmarks": [[round(x, 4), round(y, 4)] for x, y in self.landmarks]}

    @classmethod
    def from_json(cls, content: Any) -> AlignmentTemplate:
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


def align_face(image: RGB, face: DetectedFace, detector: Detector, contract: AlignmentTemplate) -> RGB:
    """Cut a face out of a photograph: (200, 200, 3), turned and scaled as the contract says."""
    target = express_in_crop(detector, contract) * CROP_SIZE
    return cut_square(image, fit_similarity(face.landmarks, target), CROP_SIZE)


def fit_contract(landmarks: Points, reference: Points) -> AlignmentTemplate:
    """Return the contract of crops whose landmarks (5, 2), in shares of the side, a detector sees in these places.

    ``reference`` (5, 2) is where it sees those of UTKFace's crops: detectors differ by 2 to 4 % of the side.
    """
    return AlignmentTemplate(_freeze(apply_matrix(fit_similarity(reference, landmarks), REFERENCE_LANDMARKS)))


def express_in_crop(detector: Detector, contract: AlignmentTemplate) -> Points:
    """Return where the detector's landmarks lie in the contract's crop, in shares of its side."""
    return apply_matrix(fit_similarity(REFERENCE_LANDMARKS, np.array(contract.landmarks)), detector.reference)


def _freeze(points: Points) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)
