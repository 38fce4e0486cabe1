"""Parts that all HTML reports share: figures and faces as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from agegen.data.images import RGB, resize_image
from agegen.data.records import FaceRecords
from agegen.errors import AgegenError
from agegen.render.plots import save_figure

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
        return encode_picture(resize_image(records.decode(position), _FACE_SIZE))
    except AgegenError:
        return None


def encode_picture(image: RGB) -> str:
    """Return an RGB picture as a JPEG data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=85)
    return _encode_uri("image/jpeg", stream.getvalue())


def _encode_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
