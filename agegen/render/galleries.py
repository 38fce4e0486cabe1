"""Faces on pages: those on which a model erred most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agegen.data.labels import format_gender
from agegen.data.records import FaceRecords
from agegen.render.html import Face, Gallery, encode_face

if TYPE_CHECKING:
    import pandas as pd

# Two rows of faces on a page.
FACES_SHOWN = 12


def show_worst_faces(name: str, table: pd.DataFrame, records: FaceRecords) -> Gallery:
    """Return the faces with the largest errors in age of a table of predictions, as far as their pictures are there."""
    positions = {path: index for index, path in enumerate(records.frame["path"])}
    # Where no age is exact, this is empty: a bracket says too little of how far off an estimate is.
    error = (table["estimated_age"] - table["age"]).abs().dropna()
    worst = table.loc[error.sort_values(ascending=False, kind="stable").index[:FACES_SHOWN]]
    faces = [_show_face(records, positions, row) for row in worst.to_dict("records")]
    return Gallery(name, [face for face in faces if face is not None])


def _show_face(records: FaceRecords, positions: dict[str, int], row: dict[Any, Any]) -> Face | None:
    uri = encode_face(records, positions.get(str(row["path"])))
    if uri is None:
        return None
    label = format_gender(float(row["female"]))
    estimate = f"estimated {row['estimated_age']:.0f}, P(female) {row['p_female']:.2f}"
    return Face(uri, f"{row['age']:.0f}", f"labelled {row['age']:.0f}, {label}; {estimate}")
