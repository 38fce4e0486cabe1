"""YuNet, a tiny face detector, run by onnxruntime: on one thread some twice as fast as by OpenCV."""

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
# What was measured with, and what a parser may be given: no other file of that name, whoever puts it there.
YUNET_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
# Cells of the three maps, in pixels; a picture's sides are filled up to whole cells of the largest.
_STRIDES = (8, 16, 32)
# OpenCV's `FaceDetectorYN` has the same defaults, but for the score: 0.9 loses turned and small faces.
_LEAST_SCORE, _LEAST_OVERLAP, _MOST_FACES = 0.5, 0.3, 500

_Maps = dict[str, NDArray[np.float32]]


class YuNet(CoarseToFineDetector):
    """The network of OpenCV's ``FaceDetectorYN``.

    Source: Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023.
    """

    name = "yunet"
    reference = REFERENCE_LANDMARKS
    search_side = 960
    # It was trained on faces of up to some 300 pixels: in larger ones it sees eyes and cheeks.
    second_side = 320
    # In the second look upright faces of 40 composed pictures have at least 0.911, the same upside down at most 0.907.
    sure_score, sure_look = 0.915, 0.91

    def __init__(self) -> None:
        self._session = load_session(find_yunet_weights())

    def search(self, image: RGB, close: bool) -> list[DetectedFace]:  # noqa: ARG002 - one way serves both
        """Return the faces in a picture."""
        maps = dict(zip(self._session[1], self._session[0].run(None, {"input": fill_cells(image)}), strict=True))
        columns = -(-image.shape[1] // _STRIDES[-1]) * _STRIDES[-1]
        rows = np.concatenate([read_maps(maps, stride, columns // stride) for stride in _STRIDES])
        return [read_row(row) for row in keep_best(rows)]


@cache
def load_session(path: Path) -> tuple[Any, list[str]]:
    """Return the session and the names of its outputs; threads share it, each computes on its own."""
    session = open_session(path.read_bytes(), threads=1)
    return session, [output.name for output in session.get_outputs()]


def fill_cells(image: RGB) -> NDArray[np.float32]:
    """Return a picture as the network takes it: (1, 3, height, width), blue first, 0–255, filled up with black."""
    import cv2

    cell = _STRIDES[-1]
    bottom, right = -image.shape[0] % cell, -image.shape[1] % cell
    filled = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    tensor = np.empty((1, 3, *filled.shape[:2]), dtype=np.float32)
    # A plane at a time takes a quarter of what OpenCV's blobFromImage takes.
    for plane, values in enumerate(cv2.split(filled)):
        tensor[0, 2 - plane] = values
    return tensor


def read_maps(maps: _Maps, stride: int, columns: int) -> NDArray[np.float64]:
    """Return what one of the three maps found (n, 15): left, top, width, height, five landmarks' x and y, the score."""
    classes, objects = (maps[f"{name}_{stride}"][0, :, 0].clip(0, 1) for name in ("cls", "obj"))
    scores = np.sqrt(classes * objects)
    found = np.flatnonzero(scores >= _LEAST_SCORE)
    cells = np.stack([found % columns, found // columns], axis=1).astype(np.float64)
    boxes = maps[f"bbox_{stride}"][0, found].astype(np.float64)
    sides = np.exp(boxes[:, 2:]) * stride
    corners = (cells + boxes[:, :2]) * stride - sides / 2
    points = (maps[f"kps_{stride}"][0, found].astype(np.float64).reshape(-1, 5, 2) + cells[:, None]) * stride
    return np.hstack([corners, sides, points.reshape(-1, 10), scores[found, None]])


def keep_best(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows (n, 15) without those that overlap a surer one's box."""
    import cv2

    boxes, scores = rows[:, :4].tolist(), rows[:, 14].tolist()
    kept = cv2.dnn.NMSBoxes(boxes, scores, _LEAST_SCORE, _LEAST_OVERLAP, top_k=10 * _MOST_FACES) if boxes else []
    best: NDArray[np.float64] = rows[np.asarray(kept, dtype=int).reshape(-1)[:_MOST_FACES]]
    return best


def read_row(row: NDArray[np.float64]) -> DetectedFace:
    """Return a row (15,) as a face."""
    left, top, width, height = (float(value) for value in row[:4])
    return DetectedFace((left, top, left + width, top + height), row[4:14].reshape(5, 2), float(row[14]))


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
