"""Folders by label: ``male/…``, ``female/…``, ``20-29/…``, ``25/…``, in any nesting (``20-29/male/a.jpg``)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from agegen.data.layouts.naming import Labels, read_names
from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords
from agegen.data.values import parse_age, parse_gender

NAME = "folders by label"


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of a folder whose subfolders say an age, a bracket or a gender."""
    return read_names(path, options, NAME, "", _parse)


def _parse(path: str) -> Labels | None:
    labels: Labels = {}
    for part in PurePosixPath(path).parts[:-1]:
        if kind := _name_kind(part):
            labels.setdefault(kind, part)
    return labels or None


def _name_kind(part: str) -> str | None:
    try:
        if parse_gender(part, {}) is not None:
            return "gender"
    except ValueError:
        pass
    try:
        return "age" if parse_age(part) is not None else None
    except ValueError:
        return None
