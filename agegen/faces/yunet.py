"""YuNet, a small face detector, run by onnxruntime: about twice as fast on one thread as in OpenCV."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.errors import AgegenError
from agegen.faces.alignment import REFERENCE_LANDMARKS
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import CoarseToFineDetector
from agegen.files import digest_file
from agegen.hub import download_file
from agegen.machine import open_session

YUNET_REPO = "opencv/face_detection_yunet"
YUNET_FILE = "face_detection_yunet_2026may.onnx"
# Only this file is loaded: all measurements used it, and a parser must not be fed whatever someone uploads.
YUNET_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
# Cell sizes of the three output maps, in pixels; images are padded to multiples of the largest.
_STRIDES = (8, 16, 32)
# Non-maximum suppression as by default in OpenCV's `FaceDetectorYN`, except for the score: its 0.9 misses rotated and
# small faces.
_MIN_SCORE, _MAX_OVERLAP, _MAX_FACES = 0.5, 0.3, 500

_Maps = dict[str, NDArray[np.float32]]


class YuNet(CoarseToFineDetector):
    """The network of OpenCV's ``FaceDetectorYN``.

    Source: Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023.
    """

    name = "yunet"
    reference = REFERENCE_LANDMARKS
    detection_side = 960
    # YuNet was trained on faces of up to about 300 pixels; in larger ones it detects eyes and cheeks as faces.
    coarse_side = 320
    # In close-ups of 40 composed images upright faces score at least 0.911, the same upside down at most 0.907.
    upright_score, upright_refined_score = 0.915, 0.91

    def __init__(self) -> None:
        """Load the network.

        Raises:
            AgegenError: the weights are neither cached nor can they be downloaded.
        """
        self._session, self._outputs = load_session(find_yunet_weights())

    def run_network(self, image: RGB, close_up: bool) -> list[DetectedFace]:  # noqa: ARG002 - the same for both
        """Return the detections in an image as it is."""
        maps = dict(zip(self._outputs, self._session.run(None, {"input": make_input(image)}), strict=True))
        width = -(-image.shape[1] // _STRIDES[-1]) * _STRIDES[-1]
        rows = np.concatenate([decode_maps(maps, stride, width // stride) for stride in _STRIDES])
        return [_convert_row(row) for row in suppress_overlaps(rows)]


@cache
def load_session(path: Path) -> tuple[Any, list[str]]:
    """Return the onnxruntime session, shared by all threads (each computes on its own), and its output names."""
    session = open_session(path.read_bytes(), threads=1)
    return session, [output.name for output in session.get_outputs()]


def make_input(image: RGB) -> NDArray[np.float32]:
    """Return the network's input (1, 3, height, width): BGR, 0–255, padded with black to whole cells."""
    import cv2

    cell = _STRIDES[-1]
    bottom, right = -image.shape[0] % cell, -image.shape[1] % cell
    padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    tensor = np.empty((1, 3, *padded.shape[:2]), dtype=np.float32)
    # Copying plane by plane takes a quarter of the time of OpenCV's blobFromImage.
    for plane, values in enumerate(cv2.split(padded)):
        tensor[0, 2 - plane] = values
    return tensor


def decode_maps(maps: _Maps, stride: int, columns: int) -> NDArray[np.float64]:
    """Return the detections (n, 15) of one map: left, top, width, height, x and y of five landmarks, score."""
    classes, objects = (maps[f"{name}_{stride}"][0, :, 0].clip(0, 1) for name in ("cls", "obj"))
    scores = np.sqrt(classes * objects)
    found = np.flatnonzero(scores >= _MIN_SCORE)
    cells = np.stack([found % columns, found // columns], axis=1).astype(np.float64)
    boxes = maps[f"bbox_{stride}"][0, found].astype(np.float64)
    sides = np.exp(boxes[:, 2:]) * stride
    corners = (cells + boxes[:, :2]) * stride - sides / 2
    points = (maps[f"kps_{stride}"][0, found].astype(np.float64).reshape(-1, 5, 2) + cells[:, None]) * stride
    return np.hstack([corners, sides, points.reshape(-1, 10), scores[found, None]])


def suppress_overlaps(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the detections (n, 15) without those that overlap one with a higher score (non-maximum suppression)."""
    import cv2

    boxes, scores = rows[:, :4].tolist(), rows[:, 14].tolist()
    kept = cv2.dnn.NMSBoxes(boxes, scores, _MIN_SCORE, _MAX_OVERLAP, top_k=10 * _MAX_FACES) if boxes else []
    best: NDArray[np.float64] = rows[np.asarray(kept, dtype=int).reshape(-1)[:_MAX_FACES]]
    return best


def _convert_row(row: NDArray[np.float64]) -> DetectedFace:
    left, top, width, height = (float(value) for value in row[:4])
    return DetectedFace((left, top, left + width, top + height), row[4:14].reshape(5, 2), float(row[14]))


def find_yunet_weights() -> Path:
    """Return YuNet's weights from the Hugging Face cache, downloading them if necessary.

    Raises:
        AgegenError: they are not cached and cannot be downloaded.
    """
    try:
        return check_weights(download_file(YUNET_REPO, YUNET_FILE))
    except AgegenError as error:
        reason = str(error).rstrip(".")
        raise AgegenError(
            f"cannot load the detector yunet: {reason}. Or use --detector mtcnn, which requires no download."
        ) from error


def check_weights(path: Path) -> Path:
    """Return ``path`` if it is the known file.

    Raises:
        AgegenError: its content is different.
    """
    digest = digest_file(path)
    if digest != YUNET_SHA256:
        raise AgegenError(
            f"{path} is not the expected YuNet file (SHA-256 {digest[:12]}…, expected {YUNET_SHA256[:12]}…). Delete it."
        )
    return path
