"""Where a plain look finds nothing: with a margin around the picture, and turned by quarters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agegen.data.images import RGB
from agegen.faces.face import DetectedFace, Detector
from agegen.faces.geometry import Matrix, apply_matrix, fit_similarity, measure_turn

# Of the longer side: crops that end at the chin and the brows get around them what detectors were trained with.
_MARGIN = 0.25
# Degrees: a face that lies further over is on end, and its landmarks are guesses.
_ON_END = 60.0
# What a detector is as sure of as of an upright face, unless it says (`sure_score`) from when on that is.
_SURE = 0.9
# By how much a detector must be surer of what it finds in a turned picture: else it stays as it is.
_CLEARLY = 0.0005


def find_faces(detector: Detector, image: RGB) -> tuple[list[DetectedFace], int]:
    """Return the faces in a photograph, and by how many degrees clockwise it must be turned to stand upright: 0 mostly.

    Where nothing is found, the picture is looked at once more with a margin, as crops of faces need it; then, and where
    no face that is found is surely upright, turned by quarters, as old cameras leave it: detectors take faces upside
    down for upright ones of which they are less sure. Places are in the picture's own pixels.
    """
    faces = detector.detect(image)
    if any(_is_sure(detector, face) and not _stands_on_end(detector, face) for face in faces):
        return faces, 0
    if not faces and (found := _look_with_margin(detector, image)):
        return found, 0
    best, turn = faces, 0
    for quarter in (1, 3, 2):
        found = _look_turned(detector, image, quarter)
        # In turned pictures a detector finds more that is none: of something there it must be sure.
        if found and _find_surest(found) >= max(_SURE, _find_surest(best) + _CLEARLY):
            best, turn = found, 90 * quarter
    return best, turn


def _is_sure(detector: Detector, face: DetectedFace) -> bool:
    look = getattr(detector, "sure_look", None)
    return face.score >= getattr(detector, "sure_score", _SURE) or (
        look is not None and face.look is not None and face.look >= look
    )


def _find_surest(faces: list[DetectedFace]) -> float:
    return max((face.score for face in faces), default=0.0)


def _stands_on_end(detector: Detector, face: DetectedFace) -> bool:
    return abs(measure_turn(fit_similarity(np.asarray(detector.reference), face.landmarks))) > _ON_END


def _look_with_margin(detector: Detector, image: RGB) -> list[DetectedFace]:
    import cv2

    margin = round(_MARGIN * max(image.shape[:2]))
    grey = (128, 128, 128)
    framed: RGB = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=grey)
    return [_move(face, np.array([[1.0, 0.0, -margin], [0.0, 1.0, -margin]])) for face in detector.detect(framed)]


def _look_turned(detector: Detector, image: RGB, quarters: int) -> list[DetectedFace]:
    """Return the faces of a picture that is turned clockwise by quarters, in pixels of the picture as it is."""
    height, width = image.shape[:2]
    turned = np.ascontiguousarray(np.rot90(image, -quarters))
    back = {
        1: np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, height - 1.0]]),
        2: np.array([[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0]]),
        3: np.array([[0.0, -1.0, width - 1.0], [1.0, 0.0, 0.0]]),
    }[quarters]
    found = [_move(face, back) for face in detector.detect(turned)]
    return sorted(found, key=lambda face: (face.box[0], face.box[1]))


def _move(face: DetectedFace, matrix: Matrix) -> DetectedFace:
    left, top, right, bottom = face.box
    corners = apply_matrix(matrix, np.array([[left, top], [right, bottom]], dtype=np.float64))
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    return replace(
        face, box=(float(x0), float(y0), float(x1), float(y1)), landmarks=apply_matrix(matrix, face.landmarks)
    )
