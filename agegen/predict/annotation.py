"""Annotated copies of photographs: a box and a label for each face, to be read on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agegen.data.images import RGB
from agegen.predict.results import FacePrediction, PhotoPrediction

# Smaller letters can't be read.
_LEAST_FONT = 10

_Box = tuple[float, float, float, float]


def draw_annotation(photo: PhotoPrediction) -> RGB:
    """Return a copy of a photograph (it must hold its image) with a box and a label for each face.

    White on black within black within white, in sizes that follow the picture's and the face's.
    """
    assert photo.image is not None
    picture = Image.fromarray(photo.image)
    canvas = ImageDraw.Draw(picture)
    taken: list[_Box] = []
    for face in photo.faces:
        whole = (0, 0, picture.width / photo.scale, picture.height / photo.scale)
        box = tuple(value * photo.scale for value in (face.box or whole))
        _draw_box(canvas, box, picture.size)
        taken.append(_draw_label(canvas, format_label(face), box, picture.size, taken))
    return np.asarray(picture)


def format_label(face: FacePrediction) -> str:
    """Return a face's label: age and interval, then gender and the probability of what is said of it."""
    assert face.age is not None and face.p_female is not None
    probability = max(face.p_female, 1 - face.p_female)
    person = f"#{face.person} " if face.person is not None else ""
    return f"{person}{face.age:.0f} ({face.age_low:.0f}-{face.age_high:.0f})\n{face.gender} {probability:.2f}"


def _draw_box(canvas: ImageDraw.ImageDraw, box: Sequence[float], size: tuple[int, int]) -> None:
    width = max(1, round(max(size) / 500))
    left, top, right, bottom = _clip(box, size)
    for inset, color in ((0, "black"), (width, "white"), (2 * width, "black")):
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            canvas.rectangle(corners, outline=color, width=width)


def _draw_label(
    canvas: ImageDraw.ImageDraw, text: str, box: Sequence[float], size: tuple[int, int], taken: list[_Box]
) -> _Box:
    """Draw a label where it covers no earlier one, if there is such a place; return what it covers."""
    font, width, height, pad = _fit_text(canvas, text, box, size)
    place = _choose_place(box, width, height, size, taken)
    canvas.rectangle(place, fill="black", outline="white", width=max(1, pad // 3))
    canvas.multiline_text((place[0] + pad, place[1] + pad), text, fill="white", font=font, spacing=pad)
    return place


def _fit_text(
    canvas: ImageDraw.ImageDraw, text: str, box: Sequence[float], size: tuple[int, int]
) -> tuple[Any, float, float, int]:
    """Return (font, width, height, padding) of a label that is no wider than the picture."""
    wanted = max(_LEAST_FONT, max(size) / 60, (box[3] - box[1]) * 0.1)
    while True:
        font = ImageFont.load_default(wanted)
        pad = max(2, round(wanted / 4))
        _, _, right, bottom = canvas.multiline_textbbox((0, 0), text, font=font, spacing=pad)
        width, height = right + 2 * pad, bottom + 2 * pad
        if wanted <= _LEAST_FONT or (width <= size[0] and height <= size[1] / 2):
            return font, width, height, pad
        wanted = max(_LEAST_FONT, wanted * 0.8)


def _choose_place(box: Sequence[float], width: float, height: float, size: tuple[int, int], taken: list[_Box]) -> _Box:
    left, top, right, bottom = box
    inside = (left, bottom - height)
    candidates = [(left, top - height), (left, bottom), (right, top), (left - width, top), inside]
    fitting = [
        (x, y, x + width, y + height)
        for x, y in candidates
        if y >= 0 and y + height <= size[1] and x + width <= size[0] + width / 2 and x >= -width / 2
    ]
    shifted = [_shift_inside(place, size) for place in fitting] or [
        _shift_inside((left, bottom - height, left + width, bottom), size)
    ]
    free = [place for place in shifted if not any(_overlap(place, other) for other in taken)]
    return (free or shifted)[0]


def _shift_inside(place: _Box, size: tuple[int, int]) -> _Box:
    x = max(0.0, min(place[0], size[0] - 1 - (place[2] - place[0])))
    y = max(0.0, min(place[1], size[1] - 1 - (place[3] - place[1])))
    return (x, y, x + place[2] - place[0], y + place[3] - place[1])


def _overlap(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _clip(box: Sequence[float], size: tuple[int, int]) -> _Box:
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(size[0] - 1.0, right), min(size[1] - 1.0, bottom)
