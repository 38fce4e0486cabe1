"""Parts that all HTML reports share: figures and faces as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agegen.data.images import RGB, resize_image
from agegen.data.labels import format_gender
from agegen.data.records import FaceRecords
from agegen.errors import AgegenError
from agegen.render.figures import save_figure

if TYPE_CHECKING:
    import pandas as pd


# Pixels of a face on a page: enough to recognise it by, small enough for dozens of them.
_FACE_SIZE = 160


@dataclass(frozen=True)
class Figure:
    """A picture as a data URI, with its title and caption; ``width`` in CSS rem at the most."""

    title: str
    caption: str
    uri: str
    width: int = 68


@dataclass(frozen=True)
class Face:
    """A face as a data URI, with its label in years and a caption."""

    uri: str
    age: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Faces under a title."""

    name: str
    faces: list[Face]


def render_page(template: str, **content: Any) -> str:
    """Return a template of agegen's, filled, as one HTML document."""
    from importlib.metadata import version

    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("agegen.render"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(version=version("agegen"), **content)


def encode_figure(figure: Any) -> str:
    """Return a matplotlib figure as a PNG data URI."""
    stream = io.BytesIO()
    save_figure(figure, stream, dpi=130, format="png")
    return _encode_uri("image/png", stream.getvalue())


def encode_face(records: FaceRecords, position: int | None) -> str | None:
    """Return the picture of a record as a JPEG data URI; None where it isn't at hand."""
    if position is None:
        return None
    try:
        return encode_image(resize_image(records.decode(position), _FACE_SIZE))
    except AgegenError:
        return None


def encode_image(image: RGB) -> str:
    """Return an RGB picture as a JPEG data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=85)
    return _encode_uri("image/jpeg", stream.getvalue())


def _encode_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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
