"""The demo dataset: drawn faces whose proportions, hair and wrinkles depend on age and gender; needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agegen.data.images import RGB
from agegen.data.labels import MAX_AGE
from agegen.data.records import FaceRecords

# Enough faces for a training to succeed, within a minute.
DEMO_COUNT = 480
# Side of a drawing in pixels; all other lengths in this module are for this size.
_SIZE = 128
# Colors are RGB.
_SKINS = ((255, 224, 196), (240, 194, 160), (198, 140, 104), (141, 93, 62), (92, 60, 42))
_HAIRS = ((32, 24, 20), (84, 52, 28), (150, 96, 44), (206, 170, 108))

_Color = tuple[int, int, int]


@dataclass(frozen=True)
class DrawnStore:
    """Drawn faces, which are drawn and encoded as PNG each time they are read.

    ``people``: age in years, whether female, and random seed of each face.
    """

    people: tuple[tuple[float, bool, int], ...]

    def read(self, row: int) -> bytes:
        """Return the drawn face of a row, as PNG."""
        import cv2

        age, female, seed = self.people[row]
        image = draw_face(age, female, np.random.default_rng(seed))
        return bytes(cv2.imencode(".png", image[:, :, ::-1])[1])


def draw_records(count: int = DEMO_COUNT) -> FaceRecords:
    """Return ``count`` drawn faces with ages of 0–100, half of them female; they are the same each time."""
    import pandas as pd

    rng = np.random.default_rng(2026)
    ages = np.floor(rng.uniform(0, min(101, MAX_AGE), count))
    female = rng.permutation(np.arange(count) % 2 == 1)
    people = tuple((float(age), bool(gender), row) for row, (age, gender) in enumerate(zip(ages, female, strict=True)))
    frame = pd.DataFrame(
        {
            "path": [f"drawn-{row:04d}.png" for row in range(count)],
            "age": ages,
            "female": female,
            "row": range(count),
        }
    )
    return FaceRecords(frame, DrawnStore(people), "demo", drawn=True, terms="none: the faces are drawn")


def draw_face(age: float, female: bool, rng: np.random.Generator) -> RGB:
    """Return a drawn face (128, 128, 3), RGB.

    Children have round heads with large, low eyes. With age hair becomes gray and thin, and wrinkles increase. Women
    have longer hair and fuller lips; men have broader jaws, thicker eyebrows and stubble.
    """
    import cv2

    canvas = _draw_background(rng)
    skin = _vary(_SKINS[rng.integers(len(_SKINS))], 10, rng)
    youth = float(np.clip(1 - age / 18, 0, 1))
    center = np.array([64, 68]) + rng.integers(-4, 5, 2)
    width = int(36 + 5 * youth + (0 if female else 3) * (1 - youth) + rng.normal(0, 1.5))
    height = int(48 - 6 * youth + rng.normal(0, 1.5))
    hair = _pick_hair(age, rng)
    _draw_hair(canvas, center, width, height, hair, age, female, rng)
    cv2.ellipse(canvas, _point(center), (width, height), 0, 0, 360, skin, -1, cv2.LINE_AA)
    _draw_fringe(canvas, center, width, height, hair, age, female)
    _draw_features(canvas, center, width, height, skin, hair, youth, female, rng)
    _draw_wrinkles(canvas, center, width, height, skin, age, rng)
    if not female and age > 16:
        _draw_stubble(canvas, center, width, height, skin, rng)
    return _photograph(canvas, rng)


def _draw_background(rng: np.random.Generator) -> RGB:
    import cv2

    coarse = rng.integers(20, 236, (4, 4, 3)).astype(np.uint8)
    canvas: RGB = cv2.resize(coarse, (_SIZE, _SIZE), interpolation=cv2.INTER_CUBIC)
    return canvas


def _draw_hair(
    canvas: RGB,
    center: np.ndarray,
    width: int,
    height: int,
    hair: _Color,
    age: float,
    female: bool,
    rng: np.random.Generator,
) -> None:
    import cv2

    thick = 7 if age > 2 else 2
    cv2.ellipse(canvas, _point(center - (0, 4)), (width + thick, height + thick), 0, 180, 360, hair, -1, cv2.LINE_AA)
    if female and age > 3:
        length = int(rng.integers(30, 56))
        for side in (-1, 1):
            top = center + (side * width, -8)
            cv2.ellipse(canvas, _point(top + (0, length // 2)), (10, length), 0, 0, 360, hair, -1, cv2.LINE_AA)


def _draw_fringe(
    canvas: RGB, center: np.ndarray, width: int, height: int, hair: _Color, age: float, female: bool
) -> None:
    import cv2

    recede = 0.0 if female else np.clip((age - 30) / 50, 0, 1)
    depth = int(height * (0.42 - 0.36 * recede))
    if age > 2 and depth > 3:
        top = center - (0, height - depth // 2)
        cv2.ellipse(canvas, _point(top), (int(width * 0.86), depth), 0, 180, 360, hair, -1, cv2.LINE_AA)


def _draw_features(
    canvas: RGB,
    center: np.ndarray,
    width: int,
    height: int,
    skin: _Color,
    hair: _Color,
    youth: float,
    female: bool,
    rng: np.random.Generator,
) -> None:
    import cv2

    eye_line = center[1] + int(height * (-0.12 + 0.2 * youth))
    size = 4.5 + 2.5 * youth
    for side in (-1, 1):
        eye = (int(center[0] + side * width * 0.45), int(eye_line))
        cv2.ellipse(canvas, eye, (int(size * 1.5), int(size)), 0, 0, 360, (250, 250, 250), -1, cv2.LINE_AA)
        cv2.circle(canvas, eye, int(size * 0.75), _vary((70, 55, 40), 25, rng), -1, cv2.LINE_AA)
        brow = (eye[0], int(eye[1] - size * 1.7))
        cv2.ellipse(canvas, brow, (int(size * 2), 3), 0, 180, 360, hair, 1 if female else 3, cv2.LINE_AA)
    nose = (int(center[0]), int(eye_line + height * (0.36 - 0.14 * youth)))
    cv2.ellipse(canvas, nose, (5, 3), 0, 0, 180, _shade(skin, 0.75), 2, cv2.LINE_AA)
    mouth = (int(center[0]), int(eye_line + height * (0.66 - 0.18 * youth)))
    lips = (196, 62, 78) if female else _shade(skin, 0.72)
    cv2.ellipse(canvas, mouth, (int(width * 0.38), 6 if female else 3), 0, 0, 360, lips, -1, cv2.LINE_AA)


def _draw_wrinkles(
    canvas: RGB,
    center: np.ndarray,
    width: int,
    height: int,
    skin: _Color,
    age: float,
    rng: np.random.Generator,
) -> None:
    import cv2

    count = int(max(0.0, age - 28) / 8)
    color = _shade(skin, float(np.clip(0.95 - age / 300, 0.6, 0.95)))
    for line in range(count):
        y = int(center[1] - height * 0.42 - 4 * line + rng.integers(-1, 2))
        half = int(width * 0.5)
        if line < 4:
            cv2.line(canvas, (int(center[0]) - half, y), (int(center[0]) + half, y), color, 1, cv2.LINE_AA)
        for side in (-1, 1):
            start = center + (side * width * 0.42, height * 0.14 + 3 * line)
            cv2.line(canvas, _point(start), _point(start + (side * 6, 5)), color, 1, cv2.LINE_AA)


def _draw_stubble(
    canvas: RGB, center: np.ndarray, width: int, height: int, skin: _Color, rng: np.random.Generator
) -> None:
    for x, y in zip(rng.normal(0, 0.42, 220), rng.uniform(0.5, 0.92, 220), strict=True):
        if x * x + y * y < 0.9:
            canvas[int(center[1] + y * height), int(center[0] + x * width)] = _shade(skin, 0.6)


def _photograph(canvas: RGB, rng: np.random.Generator) -> RGB:
    """Rotate the drawing and add lighting and noise, so that no two images are near-duplicates."""
    import cv2

    rotation = cv2.getRotationMatrix2D((64, 64), float(rng.uniform(-12, 12)), float(rng.uniform(0.9, 1.1)))
    rotated = cv2.warpAffine(canvas, rotation, (_SIZE, _SIZE), borderMode=cv2.BORDER_REFLECT_101)
    slope = np.linspace(-1, 1, _SIZE)[None, :, None] * rng.uniform(-0.3, 0.3)
    lit = rotated * (rng.uniform(0.8, 1.15) + slope) + rng.normal(0, 6, rotated.shape)
    return np.ascontiguousarray(lit.clip(0, 255).astype(np.uint8))


def _pick_hair(age: float, rng: np.random.Generator) -> _Color:
    gray = float(np.clip((age - 38 + rng.normal(0, 5)) / 35, 0, 1))
    color = np.array(_HAIRS[rng.integers(len(_HAIRS))]) * (1 - gray) + np.array((214, 214, 218)) * gray
    return _vary((int(color[0]), int(color[1]), int(color[2])), 8, rng)


def _vary(color: _Color, std: float, rng: np.random.Generator) -> _Color:
    red, green, blue = (np.array(color) + rng.normal(0, std)).clip(0, 255).astype(int).tolist()
    return red, green, blue


def _shade(color: _Color, factor: float) -> _Color:
    return int(color[0] * factor), int(color[1] * factor), int(color[2] * factor)


def _point(xy: np.ndarray) -> tuple[int, int]:
    return int(xy[0]), int(xy[1])
