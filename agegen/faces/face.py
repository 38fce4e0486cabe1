"""A face that was found in a photograph, and what finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agegen.data.images import RGB
from agegen.faces.geometry import Points


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photograph, in its pixels.

    Attributes:
        box: (left, top, right, bottom); may reach beyond the photograph's edges.
        landmarks: (5, 2), x and y of the eye on the left of the picture, the one on the right, the tip of
            the nose, the mouth's left and right corner.
        score: 0–1.
        look: the score, 0–1, of a second look at the face alone; None where there was none, or it found nothing.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float
    look: float | None = None


class Detector(Protocol):
    """Finds faces. An entry point of the group ``agegen.detectors`` names a class, or a function, that builds one.

    ``reference`` (5, 2) is where this detector sees the landmarks of a UTKFace crop on average, in shares of
    the crop's side: detectors disagree by some per cent on where an eye is, and this cancels it.
    """

    name: str
    reference: Points

    def detect(self, image: RGB) -> list[DetectedFace]:
        """Return the faces in a photograph (height, width, 3), from left to right."""
