"""Face alignment: from five landmarks to the square crop that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.errors import CheckpointError
from agegen.faces.geometry import (
    DetectedFace,
    Detector,
    Points,
    apply_matrix,
    compute_scale,
    fit_similarity,
    warp_square,
)

# Side of the crops in pixels: that of UTKFace's crops, so that both are resized to the model's input alike.
CROP_SIZE = 200
# The smallest face of a template, relative to the reference. Landmarks that coincide, or in a wrong order, are no face:
# the transform to them has no inverse.
_MIN_SCALE = 0.05
# Median landmarks (5, 2) that YuNet finds in UTKFace's crops, as fractions of the crop's side.
REFERENCE_LANDMARKS = np.array(
    [[0.2968, 0.2853], [0.6843, 0.2824], [0.4885, 0.5019], [0.3300, 0.6742], [0.6599, 0.6702]]
)


@dataclass(frozen=True)
class AlignmentTemplate:
    """The landmarks that faces are aligned to: those of the model's training crops.

    ``landmarks`` (5, 2) are fractions of the crop's side, as found by YuNet. The default is the median over UTKFace's
    crops, which have the geometry of dlib's face chips with padding 0.2.
    """

    landmarks: tuple[tuple[float, float], ...] = field(default_factory=lambda: _to_tuples(REFERENCE_LANDMARKS))

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored in checkpoints."""
        return {"landmarks": [[round(x, 4), round(y, 4)] for x, y in self.landmarks]}

    @classmethod
    def from_json(cls, content: Any) -> AlignmentTemplate:
        """Read the form that :meth:`to_json` returns.

        Raises:
            CheckpointError: invalid content.
        """
        try:
            points = np.array(content["landmarks"], dtype=np.float64)
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"invalid alignment template in the checkpoint: {error}") from error
        if points.shape != (5, 2) or not np.isfinite(points).all():
            raise CheckpointError("invalid alignment template in the checkpoint: it requires five finite landmarks")
        if compute_scale(fit_similarity(REFERENCE_LANDMARKS, points)) < _MIN_SCALE:
            raise CheckpointError("invalid alignment template in the checkpoint: its landmarks are not those of a face")
        return cls(_to_tuples(points))


def align_face(image: RGB, face: DetectedFace, detector: Detector, template: AlignmentTemplate) -> RGB:
    """Return the aligned crop (200, 200, 3) of a face that ``detector`` found in an image."""
    target = compute_target_landmarks(detector, template) * CROP_SIZE
    return warp_square(image, fit_similarity(face.landmarks, target), CROP_SIZE)


def compute_target_landmarks(detector: Detector, template: AlignmentTemplate) -> Points:
    """Return where a detector finds the landmarks (5, 2) of an aligned crop, as fractions of the crop's side."""
    return apply_matrix(fit_similarity(REFERENCE_LANDMARKS, np.array(template.landmarks)), detector.reference)


def fit_template(landmarks: Points, reference: Points) -> AlignmentTemplate:
    """Return the template of crops in which a detector finds ``landmarks`` (5, 2), as fractions of the crop's side.

    ``reference`` (5, 2) is the detector's own; see :class:`agegen.faces.geometry.Detector`. Detectors differ by 2 to
    4 % of the side.
    """
    return AlignmentTemplate(_to_tuples(apply_matrix(fit_similarity(reference, landmarks), REFERENCE_LANDMARKS)))


def _to_tuples(points: Points) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)
