"""Coarse-to-fine face detection, and retries for tight crops and rotated images."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np

from agegen.data.images import RGB, Photo
from agegen.faces.geometry import (
    DetectedFace,
    Detector,
    GivenFace,
    Matrix,
    Points,
    apply_matrix,
    compute_rotation,
    fit_similarity,
    invert_matrix,
    order_by_rows,
    warp_square,
)

# Smaller images are enlarged up to this longer side for detection, but at most twofold.
_SMALL_SIDE = 480
# Images larger than the detection size by no more than this factor are not resized: that would take longer.
_NEAR_SIZE = 1.1
# The close-up of a face is a square of this side in pixels; the crop takes this share of its side.
_CLOSE_UP_SIDE, _CLOSE_UP_SHARE = 320, 0.75
# A detection within a close-up belongs to another face if it is farther from the expected place, in pixels.
_CLOSE_UP_DISTANCE = _CLOSE_UP_SIDE / 5
# A face tilted by more degrees gets a second close-up, in which it is upright.
_MAX_TILT = 5.0
# A bounding box inside another one is a part of that face if its area is smaller than this share of the other's.
_PART_AREA = 0.5
# Bounding boxes with a greater intersection over union belong to the same face.
_SAME_BOX = 0.5
# Landmarks nearer than this share of the distance between the eyes belong to the same face; those of two faces are
# more than 1 apart.
_SAME_LANDMARKS = 0.5
# Share of the longer side added around an image without detections: detectors were trained on faces with
# surroundings, and tight crops end at the chin and the brows.
_MARGIN = 0.25
# Typical bounding box in UTKFace's crops as fractions of the side: median of YuNet's and mtcnn's boxes in 200 crops.
_TYPICAL_BOX = np.array([0.07, -0.175, 0.915, 0.99])
# Landmarks rotated by more degrees are guesses: the face lies on its side.
_SIDEWAYS = 60.0
# Minimum score of an upright face, for detectors without `upright_score`; also required in rotated images.
_UPRIGHT_SCORE = 0.9
# A rotated image is used only if its best score is higher by at least this.
_ROTATION_GAIN = 0.0005
# Minimum score in the close-up of a face whose close-up is rotated instead of the image. With it, of 60 composed photos
# with mtcnn 4 that are upside down and 3 that lie on their side get a wrong orientation, and none that are upright.
_CERTAIN_SCORE = 0.995


class CoarseToFineDetector:
    """A detector that searches the image at a limited size, then refines each face in a close-up.

    The close-up gives the landmarks: those of small faces are imprecise in the first pass, and YuNet follows only a
    fifth of a small face's tilt.
    """

    name: str
    reference: Points
    # Longer side, in pixels, of the image that is searched, unless `min_face` is set.
    detection_side: int
    # Width in pixels of the smallest face that the network detects.
    smallest_face: float = 24.0
    # Width of the smallest face to detect, in pixels of the image; it determines the size that is searched.
    min_face: float | None = None
    # Upright faces in photos nearly always score higher than this, faces upside down nearly never: in the first pass,
    # and in the close-up (above 1: scores of close-ups do not separate them).
    upright_score: float = 0.9
    upright_refined_score: float = 2.0
    # Minimum score in the first pass of a face that its close-up does not confirm; others are false detections.
    trusted_score: float = 0.85
    # A second, smaller side to search at, for faces too large for the network at the first; 0 for none.
    coarse_side: int = 0

    @abstractmethod
    def run_network(self, image: RGB, close_up: bool) -> list[DetectedFace]:
        """Return the detections in an image as it is; ``close_up``: one large face is expected."""

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in an image (height, width, 3), by rows from left to right."""
        side = self.choose_side(max(image.shape[:2]))
        found = self._detect_at(image, side)
        if 0 < self.coarse_side < min(side, max(image.shape[:2])):
            found = merge_scales(found, self._detect_at(image, self.coarse_side))
        refined = [self.refine_landmarks(image, face) for face in found]
        faces = [face for face in refined if face.refined_score is not None or face.score >= self.trusted_score]
        return order_by_rows(remove_duplicates(faces))

    def choose_side(self, longest: int) -> int:
        """Return the longer side of the image to search so that faces of ``min_face`` are detected.

        ``longest`` is the longer side of the image, in the pixels in which ``min_face`` is given.
        """
        if self.min_face is None:
            return self.detection_side
        return int(np.clip(longest * self.smallest_face / self.min_face, min(_SMALL_SIDE, longest), longest))

    def refine_landmarks(self, image: RGB, face: DetectedFace) -> DetectedFace:
        """Return a face with the landmarks found in a close-up of it."""
        target = self._compute_target()
        for _ in range(2):
            matrix = fit_similarity(face.landmarks, target)
            found = self.run_network(warp_square(image, matrix, _CLOSE_UP_SIDE), close_up=True)
            nearest = min(found, key=lambda other: _compute_distance(other.landmarks, target), default=None)
            if nearest is None or _compute_distance(nearest.landmarks, target) > _CLOSE_UP_DISTANCE:
                break
            landmarks = apply_matrix(invert_matrix(matrix), nearest.landmarks)
            face = replace(face, landmarks=landmarks, refined_score=nearest.score)
            if abs(compute_rotation(fit_similarity(target, nearest.landmarks))) < _MAX_TILT:
                break
        return face

    def scores_best_upright(self, image: RGB, face: DetectedFace) -> bool:
        """Return whether the close-up of a face scores lower in the three other orientations."""
        if face.refined_score is None or face.refined_score < _CERTAIN_SCORE:
            return False
        close_up = warp_square(image, fit_similarity(face.landmarks, self._compute_target()), _CLOSE_UP_SIDE)
        # 180 degrees first: detectors take faces upside down for upright ones.
        rotated = (np.ascontiguousarray(np.rot90(close_up, quarters)) for quarters in (2, 1, 3))
        return all(_find_best_score(self.run_network(image, close_up=True)) < face.refined_score for image in rotated)

    def _compute_target(self) -> Points:
        """Return where a close-up has the landmarks, in pixels."""
        return (self.reference * _CLOSE_UP_SHARE + (1 - _CLOSE_UP_SHARE) / 2) * _CLOSE_UP_SIDE

    def _detect_at(self, image: RGB, side: int) -> list[DetectedFace]:
        resized, scale = resize_for_detection(image, side)
        return [scale_face(face, 1 / scale) for face in self.run_network(resized, close_up=False)]


def find_faces(detector: Detector, image: RGB) -> tuple[list[DetectedFace], int]:
    """Return the faces in an image, and by how many degrees clockwise it must be rotated to be upright (mostly 0).

    An image without detections is searched again with a margin, as tight crops require. If no detected face is clearly
    upright, not even compared with its rotated close-ups, the image is searched rotated by 90, 270 and 180 degrees: old
    cameras store rotated photos without an EXIF orientation, and detectors take faces upside down for upright ones with
    a lower score. Coordinates are in pixels of the image as it was given.
    """
    faces = detector.detect(image)
    if _has_upright_face(detector, image, faces):
        return faces, 0
    if not faces:
        faces = detect_with_margin(detector, image)
        if _has_upright_face(detector, image, faces):
            return faces, 0
    best, turn = faces, 0
    for quarters in (1, 3, 2):
        found = _detect_rotated(detector, image, quarters)
        # Rotated images give more false detections, hence the high minimum score.
        if found and _find_best_score(found) >= max(_UPRIGHT_SCORE, _find_best_score(best) + _ROTATION_GAIN):
            best, turn = found, 90 * quarters
    return best, turn


def detect_landmarks(given: GivenFace, photo: Photo, detector: Detector) -> DetectedFace:
    """Return a given face in pixels of the decoded photo.

    Missing landmarks are detected within the bounding box, or placed at their typical positions in it.
    """
    left, top, right, bottom = (value * photo.scale for value in given.box)
    box, score = (left, top, right, bottom), float("nan")
    if given.landmarks is not None:
        return DetectedFace(box, scale_points(np.array(given.landmarks), photo.scale), score)
    typical = _TYPICAL_BOX
    area = (typical[2] - typical[0]) * (typical[3] - typical[1])
    side = float(np.sqrt((right - left) * (bottom - top) / area))
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    corner = centre - side * np.array([(typical[0] + typical[2]) / 2, (typical[1] + typical[3]) / 2])
    face = DetectedFace(box, detector.reference * side + corner, score)
    return detector.refine_landmarks(photo.image, face) if isinstance(detector, CoarseToFineDetector) else face


def merge_scales(fine: list[DetectedFace], coarse: list[DetectedFace]) -> list[DetectedFace]:
    """Return the faces of two passes, without the fine detections that are parts of a coarse one's face."""
    kept = [face for face in fine if not any(_is_part(face, whole) for whole in coarse)]
    # Of a face that both passes found, the fine detection is more precise.
    new = [whole for whole in coarse if not any(_is_same_box(whole, face) for face in kept)]
    return kept + new


def remove_duplicates(faces: list[DetectedFace]) -> list[DetectedFace]:
    """Return the faces by descending score, without those whose landmarks were refined to those of a better one."""
    kept: list[DetectedFace] = []
    for face in sorted(faces, key=lambda face: -face.score):
        eyes = max(float(np.linalg.norm(face.landmarks[0] - face.landmarks[1])), 1.0)
        if all(_compute_distance(face.landmarks, other.landmarks) > _SAME_LANDMARKS * eyes for other in kept):
            kept.append(face)
    return kept


def resize_for_detection(image: RGB, side: int) -> tuple[RGB, float]:
    """Return an image whose longer side is at most ``side``, enlarged if it is small, and the scale applied."""
    import cv2

    longest = max(image.shape[:2])
    scale = min(side / longest, max(1.0, min(2.0, _SMALL_SIDE / longest)))
    if 1 / _NEAR_SIZE <= scale <= 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized, scale


def scale_face(face: DetectedFace, factor: float) -> DetectedFace:
    """Return a face with its coordinates in an image resized by ``factor``."""
    left, top, right, bottom = (value * factor for value in face.box)
    return replace(face, box=(left, top, right, bottom), landmarks=scale_points(face.landmarks, factor))


def scale_points(points: Points, factor: float) -> Points:
    """Return points (n, 2) in an image resized by ``factor``; pixel centres, as in OpenCV's resize."""
    return (points + 0.5) * factor - 0.5


def _is_part(face: DetectedFace, whole: DetectedFace) -> bool:
    """Return whether a bounding box lies inside a much larger one."""
    left, top, right, bottom = whole.box
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    area = (face.box[2] - face.box[0]) * (face.box[3] - face.box[1])
    return left < x < right and top < y < bottom and area < _PART_AREA * (right - left) * (bottom - top)


def _is_same_box(first: DetectedFace, second: DetectedFace) -> bool:
    """Return whether two bounding boxes overlap so much that they belong to one face."""
    a, b = first.box, second.box
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return intersection > _SAME_BOX * (sum(areas) - intersection)


def _has_upright_face(detector: Detector, image: RGB, faces: list[DetectedFace]) -> bool:
    """Return whether a face is clearly upright, by its score or compared with its rotated close-ups."""
    candidates = [face for face in faces if not _is_sideways(detector, face)]
    if any(_is_upright(detector, face) for face in candidates):
        return True
    if not candidates or not isinstance(detector, CoarseToFineDetector):
        return False
    best = max(candidates, key=lambda face: (face.refined_score or 0.0, face.score))
    return detector.scores_best_upright(image, best)


def _is_upright(detector: Detector, face: DetectedFace) -> bool:
    """Return whether a face scores higher than faces upside down do."""
    if face.score >= getattr(detector, "upright_score", _UPRIGHT_SCORE):
        return True
    threshold = getattr(detector, "upright_refined_score", None)
    return threshold is not None and face.refined_score is not None and face.refined_score >= threshold


def _is_sideways(detector: Detector, face: DetectedFace) -> bool:
    return abs(compute_rotation(fit_similarity(np.asarray(detector.reference), face.landmarks))) > _SIDEWAYS


def _find_best_score(faces: list[DetectedFace]) -> float:
    return max((face.score for face in faces), default=0.0)


def detect_with_margin(detector: Detector, image: RGB) -> list[DetectedFace]:
    """Return the faces detected in an image with a grey margin, in pixels of the image without it."""
    import cv2

    margin = round(_MARGIN * max(image.shape[:2]))
    grey = (128, 128, 128)
    framed: RGB = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=grey)
    return [
        _transform_face(face, np.array([[1.0, 0.0, -margin], [0.0, 1.0, -margin]])) for face in detector.detect(framed)
    ]


def _detect_rotated(detector: Detector, image: RGB, quarters: int) -> list[DetectedFace]:
    """Return the faces detected in an image rotated clockwise by 90° × ``quarters``, in pixels of the original."""
    height, width = image.shape[:2]
    rotated = np.ascontiguousarray(np.rot90(image, -quarters))
    inverse = {
        1: np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, height - 1.0]]),
        2: np.array([[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0]]),
        3: np.array([[0.0, -1.0, width - 1.0], [1.0, 0.0, 0.0]]),
    }[quarters]
    found = [_transform_face(face, inverse) for face in detector.detect(rotated)]
    return order_by_rows(found)


def _transform_face(face: DetectedFace, matrix: Matrix) -> DetectedFace:
    left, top, right, bottom = face.box
    corners = apply_matrix(matrix, np.array([[left, top], [right, bottom]], dtype=np.float64))
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    return replace(
        face, box=(float(x0), float(y0), float(x1), float(y1)), landmarks=apply_matrix(matrix, face.landmarks)
    )


def _compute_distance(landmarks: Points, target: Points) -> float:
    """Return the distance between the centres of two sets of landmarks."""
    return float(np.hypot(*(landmarks.mean(axis=0) - target.mean(axis=0))))
