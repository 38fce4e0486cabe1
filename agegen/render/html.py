"""Self-contained HTML reports: templates, and figures and faces as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agegen.data.images import RGB, resize_image
from agegen.data.labels import format_gender
from agegen.data.records import FaceRecords
from agegen.errors import AgegenError
from agegen.render.figures import COLORS, DARK_COLORS, render_svg

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

# The side of a face on a page in pixels: large enough to recognise, small enough for dozens of faces.
_FACE_SIZE = 160
# Faces in a gallery: two rows of a page.
FACES_SHOWN = 12


@dataclass(frozen=True)
class Figure:
    """A figure: its title, its caption, and its panels as SVG elements; ``wide`` panels have no neighbour."""

    title: str
    caption: str
    panels: list[Markup]
    wide: bool = False


@dataclass(frozen=True)
class Face:
    """A face as a data URI, with its labelled age in years and a caption."""

    uri: str
    age: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Faces with a title."""

    name: str
    faces: list[Face]


def render_page(template: str, **content: Any) -> str:
    """Return a template of this package, filled with ``content``, as an HTML document."""
    from importlib.metadata import version

    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("agegen.render"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    series = list(zip(COLORS, DARK_COLORS, strict=True))
    return environment.get_template(template).render(version=version("agegen"), series=series, **content)


def show_worst_faces(name: str, table: pd.DataFrame, records: FaceRecords) -> Gallery:
    """Return the faces with the largest age errors of a table of predictions; unreadable images are skipped."""
    positions = {path: index for index, path in enumerate(records.frame["path"])}
    # Only of exact ages: a bracket does not tell how large an error is.
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


def encode_face(records: FaceRecords, position: int | None) -> str | None:
    """Return the image of a record as a JPEG data URI; None if the record or its image is missing."""
    if position is None:
        return None
    try:
        return encode_image(resize_image(records.decode(position), _FACE_SIZE))
    except AgegenError:
        return None


def encode_image(image: RGB) -> str:
    """Return an RGB image as a JPEG data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=85)
    return _encode_uri("image/jpeg", stream.getvalue())


def encode_panels(panels: Sequence[Any]) -> list[Markup]:
    """Return matplotlib figures as SVG elements whose colours follow the page's scheme."""
    from markupsafe import Markup

    # matplotlib escapes the text in it.
    return [Markup(render_svg(panel)) for panel in panels]


def _encode_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
