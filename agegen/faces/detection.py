"""Face detectors by name, and the crops of labelled faces in photos that are not cropped yet."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, Photo, decode_image
from agegen.data.records import BOX_COLUMNS, Box, Exclusion, FaceRecords, locate_image
from agegen.errors import AgegenError, DataError, PluginError
from agegen.faces.alignment import AlignmentTemplate, align_face
from agegen.faces.geometry import Detector, GivenFace
from agegen.faces.refinement import detect_landmarks, find_faces
from agegen.faces.yunet import YUNET_FILE, YUNET_REPO
from agegen.hub import find_cached
from agegen.plugins import format_cause, list_entry_points, load_entry_point

# The entry point group of detectors.
GROUP = "agegen.detectors"
# Faster, and better at small and rotated faces; its weights must be downloaded once.
PREFERRED_DETECTOR = "yunet"
# Its weights are part of agegen.
BUNDLED_DETECTOR = "mtcnn"
AUTO = "auto"
# The smallest share of a bounding box that is inside the image; faces at its border are often cut in half.
_MIN_INSIDE = 0.5
# Boxes to compare with their images, and the share of them that must be inside; single ones may be mistaken.
_SAMPLED_BOXES, _MIN_FITTING = 20, 0.5


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


class LabelledFaceCropper:
    """Returns the aligned crop of a labelled face in a photo; thread-safe."""

    def __init__(self, detector: str, template: AlignmentTemplate | None = None, only_boxes: bool = False) -> None:
        """Create the first detector, so that an invalid name fails early.

        Args:
            detector: its name.
            template: alignment of the crops; None means the default one.
            only_boxes: images without a bounding box are crops already, and stay as they are.

        Raises:
            AgegenError: unknown detector or missing weights.
        """
        self.detector = detector
        self._template = template or AlignmentTemplate()
        self._only_boxes = only_boxes
        self._local = threading.local()
        self._local.detector = create_detector(detector)

    def __call__(self, photo: RGB, box: Box | None = None) -> RGB:
        """Return the crop (200, 200, 3) of the face in ``box``, in pixels or as fractions; without it, the largest.

        Raises:
            DataError: no face was detected, or the box is not inside the photo.
        """
        if box is None and self._only_boxes:
            return photo
        detector = self._get_detector()
        if box is not None:
            given = GivenFace(_fit_box(box, photo))
            return align_face(photo, detect_landmarks(given, Photo(photo, 1.0), detector), detector, self._template)
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

    def __reduce__(self) -> tuple[type[LabelledFaceCropper], tuple[str, AlignmentTemplate, bool]]:
        """Pickle the arguments only: networks cannot be sent to another process."""
        return LabelledFaceCropper, (self.detector, self._template, self._only_boxes)


def add_cropper(records: FaceRecords, detector: str | None, template: AlignmentTemplate | None = None) -> FaceRecords:
    """Return records that cut faces out of photos: every image with a ``detector``, otherwise those with boxes.

    Boxes that do not fit their images, as of crops whose boxes are those of the original photos, are not used.

    Raises:
        AgegenError: unknown detector or missing weights.
    """
    for source in records.sources:
        rows = np.flatnonzero(records.boxed & (records.list_face_sources() == source))
        if len(rows) and not _boxes_fit(records, rows):
            records = _drop_boxes(records, rows)
    if detector is not None:
        return replace(records, cropper=LabelledFaceCropper(detector, template))
    if not records.boxed.any():
        return replace(records, cropper=None)
    # The bundled detector is available everywhere, so that the same data gives the same crops.
    return replace(records, cropper=LabelledFaceCropper(BUNDLED_DETECTOR, template, only_boxes=True))


def _fit_box(box: Box, photo: RGB) -> Box:
    """Return a bounding box in pixels of the photo; boxes of at most 1 × 1 are fractions of width and height.

    Raises:
        DataError: less than half of the box is inside the photo.
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = box
    if max(right - left, bottom - top) <= 1:
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
    inside = max(min(right, width) - max(left, 0), 0) * max(min(bottom, height) - max(top, 0), 0)
    if inside < _MIN_INSIDE * (right - left) * (bottom - top):
        raise DataError(f"the bounding box is not inside the image, which has {width}×{height} pixels")
    return left, top, right, bottom


def _boxes_fit(records: FaceRecords, rows: NDArray[np.int64]) -> bool:
    """Return whether most of a sample of the boxes of some rows are inside their images, if those are readable."""
    fitting = []
    for row in np.random.default_rng(0).permutation(rows)[:_SAMPLED_BOXES].tolist():
        with suppress(DataError):
            fitting.append(_is_inside(records.find_box(row), decode_image(records.read(row))))
    return not fitting or bool(np.mean(fitting) >= _MIN_FITTING)


def _is_inside(box: Box | None, photo: RGB) -> bool:
    try:
        return box is not None and bool(_fit_box(box, photo))
    except DataError:
        return False


def _drop_boxes(records: FaceRecords, rows: NDArray[np.int64]) -> FaceRecords:
    """Return records without the bounding boxes of some rows; images in several of these rows are left out."""
    files = [locate_image(records.images, row) for row in records.frame["row"].iloc[rows].tolist()]
    counts = Counter(file for file in files if file is not None)
    shared = np.zeros(len(records), dtype=bool)
    shared[rows] = [file is not None and counts[file] > 1 for file in files]
    frame = records.frame.copy()
    frame.loc[frame.index[rows], list(BOX_COLUMNS)] = float("nan")
    out = tuple(Exclusion(str(name), "one of several faces of an image") for name in frame["path"][shared])
    notice = "the bounding boxes are not used: they are not inside the images, which are taken as crops"
    records = replace(records, frame=frame, excluded=(*records.excluded, *out), notices=(*records.notices, notice))
    return records.select(~shared)
