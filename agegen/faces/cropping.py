"""Aligned crops of the largest face of each photograph, for labelled photographs that are no crops yet."""

from __future__ import annotations

import threading

from agegen.data.images import RGB
from agegen.errors import DataError
from agegen.faces.alignment import CropContract, align_face
from agegen.faces.detectors import create_detector
from agegen.faces.face import Detector
from agegen.faces.search import find_faces


class FaceCropper:
    """Cuts the largest face out of a photograph, aligned; may be called from several threads."""

    def __init__(self, detector: str, contract: CropContract | None = None) -> None:
        """Build the first detector, so that a wrong name is told at once.

        Raises:
            AgegenError: there is none of that name, or its weights are not at hand.
        """
        self.detector = detector
        self._contract = contract or CropContract()
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

    def __reduce__(self) -> tuple[type[FaceCropper], tuple[str, CropContract]]:
        """Be built anew in another process: networks can't be sent there."""
        return FaceCropper, (self.detector, self._contract)
