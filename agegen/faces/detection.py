"""Face detectors by name, and the largest face of a photo, aligned, for labelled photos that are not cropped yet."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.errors import AgegenError, DataError, PluginError
from agegen.faces.alignment import AlignmentTemplate, align_face
from agegen.faces.geometry import Detector
from agegen.faces.refinement import find_faces
from agegen.faces.yunet import YUNET_FILE, YUNET_REPO
from agegen.hub import find_cached
from agegen.plugins import format_cause, list_entry_points, load_entry_point

GROUP = "agegen.detectors"
# Quicker, and surer of small and of turned faces; but its file must be fetched once.
PREFERRED_DETECTOR = "yunet"
# What needs nothing but its package.
SHIPPED_DETECTOR = "mtcnn"
AUTO = "auto"


def list_detectors() -> list[str]:
    """Return the names of all detectors, agegen's own and those of other packages."""
    return list(dict.fromkeys(entry.name for entry in list_entry_points(GROUP)))


def choose_detector(name: str) -> str:
    """Return the detector that ``auto`` stands for, yunet where its file is at hand, else mtcnn; others as they are."""
    if name != AUTO:
        return name
    return PREFERRED_DETECTOR if find_cached(YUNET_REPO, YUNET_FILE) else SHIPPED_DETECTOR


def create_detector(name: str) -> Detector:
    """Build the detector called ``name``; each thread needs one of its own.

    Raises:
        AgegenError: there is none of that name, its weights are not at hand, or its package is broken.
    """
    entry = next((entry for entry in list_entry_points(GROUP) if entry.name == name), None)
    if entry is None:
        known = ", ".join([*list_detectors(), "none"])
        raise AgegenError(f"no detector is called '{name}'; --detector is one of {known}")
    factory = load_entry_point("detector", entry)
    try:
        detector: Detector = factory()
    except AgegenError:
        raise
    except Exception as error:  # a stranger's constructor may raise anything
        called = f"detector '{name}' of {entry.source}"
        raise PluginError(f"{called} can't be built: {format_cause(error)}") from error
    if gap := find_detector_gap(detector):
        raise PluginError(f"detector '{name}' of {entry.source}: {gap}")
    return detector


def find_detector_gap(detector: Any) -> str | None:
    """Return what a detector fails to declare, None where its declarations are whole."""
    kind = type(detector).__name__
    if not isinstance(getattr(detector, "name", None), str):
        return f"{kind}.name must be a str"
    reference = np.asarray(getattr(detector, "reference", ()))
    if reference.shape != (5, 2) or not (np.isfinite(reference).all() and ((reference > 0) & (reference < 1)).all()):
        return f"{kind}.reference must be five landmarks (5, 2), in shares of a UTKFace crop's side"
    return None if callable(getattr(detector, "detect", None)) else f"{kind} must define detect(image)"


class LargestFaceCropper:
    """Cuts the largest face out of a photograph, aligned; may be called from several threads."""

    def __init__(self, detector: str, contract: AlignmentTemplate | None = None) -> None:
        """Build the first detector, so that a wrong name is told at once.

        Raises:
            AgegenError: there is none of that name, or its weights are not at hand.
        """
        self.detector = detector
        self._contract = contract or AlignmentTemplate()
        self._local = threading.local()
        self._local.detector = create_detector(detector)

    def __call__(self, photo: RGB) -> RGB:
        """Return the crop (200, 200, 3).

        Raises:
            DataError: no face is found.
        """
        detector = self._get_detector()
        faces, _ = find_faces(detector, photo)
        if not faces:
            raise DataError(f"no face found ({self.detector})")
        # One label stands for one face: the largest, as whoever takes a picture of somebody means it.
        largest = max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
        return align_face(photo, largest, detector, self._contract)

    def _get_detector(self) -> Detector:
        # OpenCV's networks can't be shared between threads.
        if not hasattr(self._local, "detector"):
            self._local.detector = create_detector(self.detector)
        detector: Detector = self._local.detector
        return detector

    def __str__(self) -> str:
        return f"{self.detector}, {self._contract.to_json()}"

    def __reduce__(self) -> tuple[type[LargestFaceCropper], tuple[str, AlignmentTemplate]]:
        """Be built anew in another process: networks can't be sent there."""
        return LargestFaceCropper, (self.detector, self._contract)
