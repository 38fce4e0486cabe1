"""Bounding boxes from another detector, read from a table."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.records import BOX_COLUMNS
from agegen.errors import DataError
from agegen.faces.alignment import REFERENCE_LANDMARKS
from agegen.faces.geometry import DetectedFace, GivenFace

# The prefixes of the landmarks' columns; each has `_x` and `_y`.
LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


class GivenFaces:
    """The faces of each file in a table; file names are relative to the working directory or the table's folder."""

    def __init__(self, table: Path, faces: dict[str, list[GivenFace]]) -> None:
        self._folder = table.parent
        self._names = list(faces)
        self._faces = {_normalize(Path(name)): found for name, found in faces.items()}
        self._faces |= {_normalize(table.parent / name): found for name, found in faces.items()}

    def find(self, file: str) -> list[GivenFace]:
        """Return the faces of a file; none if it is not in the table."""
        return self._faces.get(_normalize(Path(file)), [])

    def list_files(self) -> list[str]:
        """Return all files of the table: by the name in the table if it exists, otherwise in the table's folder."""
        return [name if os.path.lexists(name) else str(self._folder / name) for name in self._names]


def read_boxes(path: Path) -> GivenFaces:
    """Read a table of faces: CSV with the columns file, left, top, right, bottom, or JSON Lines with these or ``box``.

    Landmarks are ten more columns, ``left_eye_x``, ``left_eye_y`` … ``mouth_right_y``, or in JSON ``landmarks``, five
    pairs of x and y. A row without a bounding box, such as agegen writes for a file without a face, adds only the file.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the error gives its line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    faces: dict[str, list[GivenFace]] = {}
    rows = _read_csv(text) if path.suffix.lower() == ".csv" else _read_json_lines(text, path)
    for line, row in rows:
        try:
            faces.setdefault(str(row["file"]), []).extend(_read_face(row))
        except KeyError as error:
            columns = ", ".join(("file", *BOX_COLUMNS))
            raise DataError(f"{path}, line {line}: missing value {error}. A face requires {columns}.") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {line}: invalid bounding box or landmarks: {error}") from error
    if not faces:
        raise DataError(f"{path} contains no rows")
    return GivenFaces(path, faces)


class NoDetector:
    """The detector ``none``: it detects nothing; its ``reference`` places the landmarks of given bounding boxes."""

    name, reference = "none", REFERENCE_LANDMARKS

    def detect(self, image: Any) -> list[DetectedFace]:  # noqa: ARG002 - the protocol's signature
        """Return no face."""
        return []


def _read_csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the values of each row."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        yield reader.line_num, {name: value for name, value in row.items() if value not in (None, "")}


def _read_json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the values of each row, ``box`` as four values."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: invalid JSON ({error}). Bounding boxes are read from .csv or JSON Lines."
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        values = {name: value for name, value in row.items() if value is not None}
        box = row.get("box")
        if isinstance(box, list) and len(box) == len(BOX_COLUMNS):
            values |= dict(zip(BOX_COLUMNS, box, strict=True))
        yield number, values


def _read_face(row: dict[str, Any]) -> Iterable[GivenFace]:
    """Return the face of a row; none for a row without a bounding box."""
    if not any(side in row for side in BOX_COLUMNS) and row.get("status") in (None, "no_face", "unreadable"):
        return []
    left, top, right, bottom = (float(row[side]) for side in BOX_COLUMNS)
    if not (np.isfinite((left, top, right, bottom)).all() and right > left and bottom > top):
        raise ValueError(f"{(left, top, right, bottom)} is not (left, top, right, bottom)")
    landmarks = row.get("landmarks")
    if landmarks is None and f"{LANDMARKS[0]}_x" in row:
        landmarks = [(row[f"{name}_x"], row[f"{name}_y"]) for name in LANDMARKS]
    if landmarks is None:
        return [GivenFace((left, top, right, bottom))]
    points = np.array(landmarks, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError("landmarks must be five pairs of x and y")
    return [GivenFace((left, top, right, bottom), tuple((float(x), float(y)) for x, y in points))]


def _normalize(path: Path) -> str:
    return os.path.normpath(path.absolute())
