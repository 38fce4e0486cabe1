"""Face detectors by name, and the crop of the largest face for labelled photos that are not cropped yet."""

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

# The entry point group of detectors.
GROUP = "agegen.detectors"
# Faster, and better at small and rotated faces; its weights must be downloaded once.
PREFERRED_DETECTOR = "yunet"
# Its package includes the weights.
BUNDLED_DETECTOR = "mtcnn"
AUTO = "auto"


def list_detectors() -> list[str]:
    """Return the names of all installed detectors, agegen's own and those of other packages."""
    return list(dict.fromkeys(entry.name for entry in list_entry_points(GROUP)))


def choose_detector(name: str) -> str:
    """Return ``name``, or for ``auto`` yunet if it has been downloaded, otherwise mtcnn."""
    if name != AUTO:
        return name
    return PREFERRED_DETECTOR if find_cached(YUNET_REPO, YUNET_FILE) else BUNDLED_DETECTOR


def create_detector(name: str) -> Detector:
    """Create a detector by its name; each thread requires its own.

    Raises:
        AgegenError: unknown name, missing weights, or a broken package.
    """
    entry = next((entry for entry in list_entry_points(GROUP) if entry.name == name), None)
    if entry is None:
        raise AgegenError(f"unknown detector: '{name}'. Choose one of {', '.join([*list_detectors(), 'none'])}.")
    factory = load_entry_point("detector", entry)
    try:
        detector: Detector = factory()
    except AgegenError:
        raise
    except Exception as error:  # a third-party constructor may raise anything
        raise PluginError(f"cannot create the detector '{name}' of {entry.source}: {format_cause(error)}") from error
    if problem := check_declarations(detector):
        raise PluginError(f"invalid detector '{name}' of {entry.source}: {problem}")
    return detector


def check_declarations(detector: Any) -> str | None:
    """Return what is missing or invalid in a detector's declarations, None if they are complete."""
    kind = type(detector).__name__
    if not isinstance(getattr(detector, "name", None), str):
        return f"{kind}.name must be a str"
    reference = np.asarray(getattr(detector, "reference", ()))
    if reference.shape != (5, 2) or not (np.isfinite(reference).all() and ((reference > 0) & (reference < 1)).all()):
        return f"{kind}.reference must be five landmarks (5, 2) as fractions of a UTKFace crop's side"
    return None if callable(getattr(detector, "detect", None)) else f"{kind} must define detect(image)"


class LargestFaceCropper:
    """Returns the aligned crop of the largest face in a photo; thread-safe."""

    def __init__(self, detector: str, template: AlignmentTemplate | None = None) -> None:
        """Create the first detector, so that an invalid name fails early; no ``template`` means the default one.

        Raises:
            AgegenError: unknown detector or missing weights.
        """
        self.detector = detector
        self._template = template or AlignmentTemplate()
        self._local = threading.local()
        self._local.detector = create_detector(detector)

    def __call__(self, photo: RGB) -> RGB:
        """Return the crop (200, 200, 3).

        Raises:
            DataError: no face was detected.
        """
        detector = self._get_detector()
        faces, _ = find_faces(detector, photo)
        if not faces:
            raise DataError(f"no face found ({self.detector})")
        # A label describes one face: most probably the largest, the subject of the photo.
        largest = max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
        return align_face(photo, largest, detector, self._template)

    def _get_detector(self) -> Detector:
        # OpenCV's networks cannot be shared between threads.
        if not hasattr(self._local, "detector"):
            self._local.detector = create_detector(self.detector)
        detector: Detector = self._local.detector
        return detector

    def __str__(self) -> str:
        # Part of the identity of cached features: do not change it.
        return f"{self.detector}, {self._template.to_json()}"

    def __reduce__(self) -> tuple[type[LargestFaceCropper], tuple[str, AlignmentTemplate]]:
        """Pickle the arguments only: networks cannot be sent to another process."""
        return LargestFaceCropper, (self.detector, self._template)
