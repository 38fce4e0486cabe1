"""Faces that somebody else's detector has found: read from a file, brought into a photograph's pixels."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import Photo
from agegen.errors import DataError
from agegen.faces.geometry import DetectedFace, Detector
from agegen.faces.refinement import CoarseToFineDetector
from agegen.faces.yunet import YuNet

SIDES = ("left", "top", "right", "bottom")
MARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
# Where boxes lie in UTKFace's crops, in shares of the side: the median of what YuNet and mtcnn give for 200 of them.
_USUAL_BOX = np.array([0.07, -0.175, 0.915, 0.99])

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class GivenFace:
    """A face in a file's own pixels: its box (left, top, right, bottom) and, where known, five landmarks (x, y).

    The landmarks are the eye on the left of the picture, the one on the right, the tip of the nose, the mouth's left
    and right corner.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...] | None = None


class GivenFaces:
    """The faces of each file, as a table names them: by the name given, or by its place beside the table."""

    def __init__(self, table: Path, faces: dict[str, list[GivenFace]]) -> None:
        self.names = list(faces)
        self._faces = {_settle(Path(name)): found for name, found in faces.items()}
        self._faces |= {_settle(table.parent / name): found for name, found in faces.items()}

    def of(self, file: str) -> list[GivenFace]:
        """Return the faces of a file; none where the table doesn't know it."""
        return self._faces.get(_settle(Path(file)), [])

    def list_files(self, table: Path) -> list[str]:
        """Return all files of the table: as it names them, or in its own folder where they lie there."""
        return [name if os.path.lexists(name) else str(table.parent / name) for name in self.names]


def read_boxes(path: Path) -> GivenFaces:
    """Read a table of faces: CSV with the columns file, left, top, right, bottom; or JSON Lines, there ``box`` too.

    Landmarks are ten further columns, ``left_eye_x``, ``left_eye_y`` … ``mouth_right_y``, or in JSON ``landmarks``,
    five times x and y. Rows without a box, as those of agegen's own that found no face, name a file that has none.

    Raises:
        DataError: it can't be read, or a row is none of these; the error names its line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error
    faces: dict[str, list[GivenFace]] = {}
    rows = _read_csv(text) if path.suffix.lower() == ".csv" else _read_lines(text, path)
    for line, row in rows:
        try:
            faces.setdefault(str(row["file"]), []).extend(_read_face(row))
        except (KeyError, TypeError, ValueError) as error:
            wanted = (
                "file, left, top, right, bottom" if isinstance(error, KeyError) else "four finite numbers, in order"
            )
            raise DataError(f"{path}, line {line}: a face needs {wanted} ({error})") from error
    if not faces:
        raise DataError(f"{path} names no file")
    return GivenFaces(path, faces)


def _read_csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        yield reader.line_num, {name: value for name, value in row.items() if value not in (None, "")}


def _read_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: no JSON ({error}); tables of boxes are .csv or JSON Lines"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no JSON object")
        box = row.get("box")
        yield (
            number,
            {name: value for name, value in row.items() if value is not None}
            | (dict(zip(SIDES, box, strict=True)) if isinstance(box, list) and len(box) == 4 else {}),
        )


def _read_face(row: dict[str, Any]) -> Iterable[GivenFace]:
    if not any(side in row for side in SIDES) and row.get("status") in (None, "no_face", "unreadable"):
        return []
    box = tuple(float(row[side]) for side in SIDES)
    if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
        raise ValueError(f"{box} is no box")
    marks = row.get("landmarks")
    if marks is None and f"{MARKS[0]}_x" in row:
        marks = [(row[f"{name}_x"], row[f"{name}_y"]) for name in MARKS]
    if marks is None:
        return [GivenFace((box[0], box[1], box[2], box[3]))]
    points = np.array(marks, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError("its landmarks are not five times x and y")
    return [GivenFace((box[0], box[1], box[2], box[3]), tuple((float(x), float(y)) for x, y in points))]


def place_face(face: GivenFace, photo: Photo, detector: Detector) -> DetectedFace:
    """Return a given face in a photograph's pixels; landmarks that weren't given are looked for, else guessed."""
    left, top, right, bottom = (value * photo.scale for value in face.box)
    if face.landmarks is not None:
        marks = (np.array(face.landmarks) + 0.5) * photo.scale - 0.5
        return DetectedFace((left, top, right, bottom), marks, float("nan"))
    usual = _USUAL_BOX
    side = float(np.sqrt((right - left) * (bottom - top) / ((usual[2] - usual[0]) * (usual[3] - usual[1]))))
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    corner = middle - side * np.array([(usual[0] + usual[2]) / 2, (usual[1] + usual[3]) / 2])
    guess = DetectedFace((left, top, right, bottom), detector.reference * side + corner, float("nan"))
    return detector.refine_landmarks(photo.image, guess) if isinstance(detector, CoarseToFineDetector) else guess


class NoDetector:
    """Stands for the detector where faces are given and none is asked for: it has landmarks' usual places alone."""

    name, reference = "none", YuNet.reference

    def detect(self, image: Any) -> list[DetectedFace]:  # noqa: ARG002 - it looks at nothing
        """Return no face."""
        return []


def _settle(path: Path) -> str:
    return os.path.normpath(path.absolute())
