"""Detectors that look twice: at the photograph in a bounded size, then at each face in its own."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np

from agegen.data.images import RGB
from agegen.faces.geometry import (
    DetectedFace,
    Detector,
    Matrix,
    Points,
    apply_matrix,
    cut_square,
    fit_similarity,
    invert_matrix,
    measure_turn,
)

# A small photograph is enlarged for the search, twice at the most, up to this length of its longer side.
_SMALL_SIDE = 480
# A picture no larger than so many times the side of the search is searched as it is: to scale it takes longer.
_NEARLY = 1.1
# The second look: a square of this side, in which the crop has that share of the side.
_CLOSE_SIDE, _CLOSE_SHARE = 320, 0.75
# Of a face's area: what is smaller and inside of it is a part.
_PART = 0.5
# A face that turns out to be tilted by more degrees than this is turned upright and looked at once more.
_TILT = 5.0


# Landmarks nearer than this share of the distance between the eyes are of one face; those of two lie over one apart.
_SAME_FACE = 0.5


class CoarseToFineDetector:
    """A detector that searches the photograph at a bounded size, then looks at each face in its own size.

    The second look gives the landmarks: in the first they are coarse for small faces, and YuNet follows
    only a fifth of a small face's tilt.
    """

    name: str
    reference: Points
    search_side: int
    # A face of so many pixels is found in the picture that is searched.
    smallest: float = 24.0
    # The width of the smallest face wanted, in pixels of the photograph: it sets the size of the search.
    min_face: float | None = None
    # Of upright faces in photographs it is nearly always surer than that, of faces upside down nearly never: in the
    # search, and in the second look, where that tells them apart.
    sure_score: float = 0.9
    sure_look: float = 2.0
    # What the second look doesn't confirm is a face if the search was so sure of it; else it is a pattern.
    trusted_score: float = 0.85
    # A further, smaller side to search at, for faces too large for the detector at the first; 0 for none.
    second_side: int = 0

    @abstractmethod
    def search(self, image: RGB, close: bool) -> list[DetectedFace]:
        """Return the faces in a picture; ``close`` where one large face is expected."""

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in a photograph (height, width, 3), from left to right."""
        side = self.choose_side(max(image.shape[:2]))
        found = self._search_at(image, side)
        if 0 < self.second_side < min(side, max(image.shape[:2])):
            found = join_sizes(found, self._search_at(image, self.second_side))
        looked = [self.refine_landmarks(image, face) for face in found]
        faces = drop_repeated([face for face in looked if face.look is not None or face.score >= self.trusted_score])
        return sorted(faces, key=lambda face: (face.box[0], face.box[1]))

    def choose_side(self, longest: int) -> int:
        """Return the longer side of the picture that is searched, by the smallest face that is wanted.

        ``longest``: of the photograph's sides, in the pixels in which ``min_face`` is given.
        """
        if self.min_face is None:
            return self.search_side
        return int(np.clip(longest * self.smallest / self.min_face, min(_SMALL_SIDE, longest), longest))

    def _search_at(self, image: RGB, side: int) -> list[DetectedFace]:
        small, scale = scale_for_search(image, side)
        return [scale_face(face, 1 / scale) for face in self.search(small, close=False)]

    def refine_landmarks(self, image: RGB, face: DetectedFace) -> DetectedFace:
        """Return a face of a photograph with the landmarks that a look at it alone gives."""
        margin = (1 - _CLOSE_SHARE) / 2
        target = (self.reference * _CLOSE_SHARE + margin) * _CLOSE_SIDE
        for _ in range(2):
            matrix = fit_similarity(face.landmarks, target)
            found = self.search(cut_square(image, matrix, _CLOSE_SIDE), close=True)
            nearest = min(found, key=lambda other: _measure_distance(other.landmarks, target), default=None)
            if nearest is None or _measure_distance(nearest.landmarks, target) > _CLOSE_SIDE / 5:
                break
            landmarks = apply_matrix(invert_matrix(matrix), nearest.landmarks)
            face = replace(face, landmarks=landmarks, look=nearest.score)
            if abs(measure_turn(fit_similarity(target, nearest.landmarks))) < _TILT:
                break
        return face


def join_sizes(fine: list[DetectedFace], coarse: list[DetectedFace]) -> list[DetectedFace]:
    """Return the faces of two searches: parts of a face that the coarse one sees whole are no faces of their own."""
    kept = [face for face in fine if not any(_is_part(face, whole) for whole in coarse)]
    # What both found is the fine one's, where it is whole there.
    new = [whole for whole in coarse if not any(_is_same(whole, face) for face in kept)]
    return kept + new


def _is_part(face: DetectedFace, whole: DetectedFace) -> bool:
    """Return whether a face lies inside of a much larger one."""
    left, top, right, bottom = whole.box
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    area = (face.box[2] - face.box[0]) * (face.box[3] - face.box[1])
    return left < x < right and top < y < bottom and area < _PART * (right - left) * (bottom - top)


def _is_same(first: DetectedFace, second: DetectedFace) -> bool:
    """Return whether two boxes are of one face: they share half of what they cover."""
    a, b = first.box, second.box
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared > 0.5 * (sum(areas) - shared)


def drop_repeated(faces: list[DetectedFace]) -> list[DetectedFace]:
    """Return the faces without those that a second look led to the same place as a surer one."""
    kept: list[DetectedFace] = []
    for face in sorted(faces, key=lambda face: -face.score):
        eyes = max(float(np.linalg.norm(face.landmarks[0] - face.landmarks[1])), 1.0)
        if all(_measure_distance(face.landmarks, other.landmarks) > _SAME_FACE * eyes for other in kept):
            kept.append(face)
    return kept


def scale_for_search(image: RGB, side: int) -> tuple[RGB, float]:
    """Return a photograph whose longer side is at most ``side``, small ones enlarged, and the scale used."""
    import cv2

    longest = max(image.shape[:2])
    scale = min(side / longest, max(1.0, min(2.0, _SMALL_SIDE / longest)))
    if 1 / _NEARLY <= scale <= 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized, scale


def scale_face(face: DetectedFace, factor: float) -> DetectedFace:
    """Return a face in a picture that is ``factor`` times as large."""
    left, top, right, bottom = (value * factor for value in face.box)
    # A pixel's centre counts, as in OpenCV's resize.
    landmarks = (face.landmarks + 0.5) * factor - 0.5
    return replace(face, box=(left, top, right, bottom), landmarks=landmarks)


def _measure_distance(landmarks: Points, target: Points) -> float:
    return float(np.hypot(*(landmarks.mean(axis=0) - target.mean(axis=0))))


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
