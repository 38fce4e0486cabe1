"""The contract test for detectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agegen.data.images import RGB, decode_image
from agegen.faces.alignment import CropContract, align_face, express_in_crop
from agegen.faces.detectors import find_detector_gap
from agegen.faces.face import DetectedFace, Detector
from agegen.faces.mtcnn import MTCNN
from agegen.files import find_portrait
from agegen.testing.promises import require

# Where matplotlib's portrait of Grace Hopper (512 × 600) has the eyes and the middle of the mouth, in pixels.
_PORTRAIT_EYES, _PORTRAIT_MOUTH = ((220, 187), (304, 185)), (262, 270)
# Pixels. Detectors disagree by some on where an eye is; the eyes are 84 apart.
_TOLERANCE = 20
# Of a crop's side: how far from its place a landmark may be found in the crop that was cut by it.
_CROP_TOLERANCE = 0.08


def check_detector(factory: Callable[[], Detector]) -> None:
    """Check all that agegen expects of a detector; needs no data but the portrait that matplotlib brings.

    Declarations; no face in plain pictures of any size; the portrait's face, its box, landmarks and score; faces from
    left to right; a picture that stays as it is; crops, cut by its landmarks, that have the face in its place.

    Args:
        factory: what the entry point names: a class, or a function that builds a detector.

    Raises:
        AssertionError: the first thing that is not as the contract says.
    """
    detector = factory()
    gap = find_detector_gap(detector)
    require(gap is None, str(gap))
    for shape in ((1, 1), (3, 400), (64, 64), (480, 640)):
        require(list(detector.detect(_fill(*shape))) == [], f"it finds a face in a grey picture of {shape}")
    photo = decode_image(find_portrait().read_bytes()).copy()
    before = photo.copy()
    found = detector.detect(photo)
    require(np.array_equal(photo, before), "it changes the picture")
    require(len(found) == 1, f"it finds {len(found)} faces in a portrait of one")
    _check_face(found[0])
    _check_crop(detector, photo, found[0])
    two = detector.detect(np.concatenate([photo, photo], axis=1))
    require(len(two) == 2, f"it finds {len(two)} faces in a picture of two")
    require(two[0].box[0] < two[1].box[0], "faces don't come from left to right")


def _fill(height: int, width: int) -> RGB:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def _check_face(face: DetectedFace) -> None:
    left, top, right, bottom = face.box
    marks = np.asarray(face.landmarks, dtype=np.float64)
    require(marks.shape == (5, 2) and np.isfinite(marks).all(), "landmarks are not five pairs of x and y")
    require(0 <= face.score <= 1, f"the score {face.score} lies outside of 0–1")
    require(left < right and top < bottom, "the box is not (left, top, right, bottom)")
    inside = (marks[:, 0] > left) & (marks[:, 0] < right) & (marks[:, 1] > top) & (marks[:, 1] < bottom)
    require(inside.all(), "landmarks lie outside of the box")
    wanted = np.array([*_PORTRAIT_EYES, _PORTRAIT_MOUTH], dtype=np.float64)
    places = np.array([marks[0], marks[1], marks[3:].mean(axis=0)])
    apart = np.linalg.norm(places - wanted, axis=1)
    require(
        (apart < _TOLERANCE).all(), "landmarks are not the picture's left eye, right eye, nose, left and right mouth"
    )


def _check_crop(detector: Detector, photo: RGB, face: DetectedFace) -> None:
    contract = CropContract()
    crop = align_face(photo, face, detector, contract)
    require(detector.detect(crop), "it finds no face in an aligned crop")
    # Another detector's look at it: by its own landmarks, any `reference` would seem right.
    judge = MTCNN()
    places = [other.landmarks / crop.shape[0] - express_in_crop(judge, contract) for other in judge.detect(crop)]
    near = any((np.linalg.norm(place, axis=1) < _CROP_TOLERANCE).all() for place in places)
    require(
        near, "`reference` is not where it sees the landmarks of UTKFace's crops: its crops have the face elsewhere"
    )
