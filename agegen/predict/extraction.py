"""From a photograph to the crops of its faces: decoded no larger than needed, searched, cut out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agegen.data.images import RGB, Photo, count_pages, decode_photo, read_image_file, resize_image
from agegen.errors import AgegenError, DataError
from agegen.faces.alignment import CROP_SIZE, AlignmentTemplate, align_face, express_in_crop
from agegen.faces.detection import create_detector
from agegen.faces.geometry import DetectedFace, Detector, fit_similarity
from agegen.faces.refinement import CoarseToFineDetector, find_faces, scale_face
from agegen.predict.boxes import GivenFace, NoDetector, place_face

NO_DETECTOR = "none"
# The longer side, in pixels, to which photographs are decoded at most.
LARGEST_SIDE = 4096
# At that size a face of so many pixels in a photograph of 110 megapixels is still as large as detectors need.
SMALLEST_DECODED = 80.0
# A crop is cut from a picture in which it has so many times the side that the model takes: with less it blurs. See
# tests/benchmarks/README.md for what 1 and 2 would change.
_FINENESS = 1.5


@dataclass(frozen=True)
class Keep:
    """What stays beside the estimates: the photographs, the crops in full size."""

    images: bool = False
    crops: bool = False

    @property
    def any(self) -> bool:
        """Whether crops stay: whoever has the photograph has them too."""
        return self.images or self.crops


NOTHING = Keep()

# Decodes a photograph: the argument says, from its width and height, how long its longer side must be at least.
Decode = Callable[[Callable[[int, int], int] | None], Photo]


@dataclass(frozen=True)
class ExtractedFaces:
    """A photograph, or a page or frame, whose faces are cut out; or the reason why it has none.

    ``faces`` are in pixels of the photograph as it was decoded, ``scale`` times those of the file, ``size`` (width,
    height). ``crops`` are of the side that the model takes, or of 200 pixels where crops or images are kept.
    """

    file: str
    faces: tuple[DetectedFace | None, ...] = ()
    crops: tuple[RGB, ...] = ()
    photo: Photo | None = None
    reason: str | None = None
    scale: float = 1.0
    size: tuple[int, int] = (0, 0)
    turn: int | None = None
    page: int | None = None
    time: float | None = None
    keep: Keep = NOTHING


class FaceExtractor:
    """Finds the faces in photographs and cuts out the crops that a model takes; may be called from several threads."""

    def __init__(
        self,
        detector: str,
        contract: AlignmentTemplate,
        input_size: int,
        min_score: float = 0.0,
        min_face: float | None = None,
    ) -> None:
        """Build the first detector, so that a wrong name is told at once.

        Raises:
            AgegenError: there is none of that name, its weights are not at hand, or a number is out of range.
        """
        if min_face is not None and not min_face >= 1:
            raise AgegenError("--min-face must be at least 1 pixel")
        if not 0 <= min_score <= 1:
            raise AgegenError("--min-score must be between 0 and 1")
        self.detector, self.min_score, self.min_face = detector, min_score, min_face
        self._contract, self._input_size = contract, input_size
        # Where small faces are looked for, photographs are decoded whole if need be.
        self.limit = LARGEST_SIDE if min_face is None or min_face >= SMALLEST_DECODED else None
        self._local = threading.local()
        self._local.detector = self._build_detector()

    def ask(self, min_score: float) -> FaceExtractor:
        """Return the same with another ``min_score``; detectors are shared."""
        other = copy.copy(self)
        other.min_score = min_score
        return other

    def cut_file(
        self,
        file: str,
        content: bytes | Callable[[], bytes] | None = None,
        keep: Keep = NOTHING,
        given: Sequence[GivenFace] | None = None,
    ) -> list[ExtractedFaces]:
        """Return the cuts of a picture file, or of its ``content``: one, or one for each page where it has several."""
        try:
            if content is None:
                content = read_image_file(file)
            elif callable(content):
                content = content()
            pages = 1 if given is not None else count_pages(content)
            cuts = [self.cut_encoded(file, content, keep, given, page) for page in range(pages)]
            return [replace(cut, page=page) for page, cut in enumerate(cuts, start=1)] if pages > 1 else cuts
        except DataError as error:
            return [ExtractedFaces(file, reason=str(error))]
        except MemoryError:
            return [ExtractedFaces(file, reason="not enough memory to decode it")]

    def cut_encoded(
        self, file: str, content: bytes, keep: Keep = NOTHING, given: Sequence[GivenFace] | None = None, page: int = 0
    ) -> ExtractedFaces:
        """Return the cut of an encoded picture, decoded at the size that the search needs, and anew for small faces.

        Raises:
            DataError: it can't be decoded.
        """
        return self.cut(file, lambda enough: decode_photo(content, self.limit, enough, page), keep, given)

    def cut(
        self,
        file: str,
        decode: Decode,
        keep: Keep = NOTHING,
        given: Sequence[GivenFace] | None = None,
        upright: bool = False,
    ) -> ExtractedFaces:
        """Return the cut of a photograph that ``decode`` gives in the size asked for; ``given`` faces are not searched.

        ``upright``: it is known to be, as frames of a video are, and no other turn of it is looked at.

        Raises:
            DataError: it can't be decoded.
        """
        full = keep.images or (given is not None)
        if given is None and self.detector == NO_DETECTOR:
            photo = decode(None if full or keep.crops else self._size_of_crop)
            crops = [photo.image]
            faces: tuple[DetectedFace | None, ...] = (None,)
            turn = None
        else:
            photo = decode(None if full else self._size_of_search)
            found, turn = self._find(photo, given, upright)
            if not full:
                photo, found = self._refine(photo, found, decode, CROP_SIZE if keep.crops else None)
            crops = [align_face(photo.image, face, self._get_detector(), self._contract) for face in found]
            faces = tuple(found)
        if not keep.any:
            # Resized here, in a thread, rather than by the one that runs the model.
            crops = [resize_image(crop, self._input_size) for crop in crops]
        size = (photo.image.shape[1], photo.image.shape[0])
        return ExtractedFaces(
            file, faces, tuple(crops), photo if keep.images else None, None, photo.scale, size, turn, keep=keep
        )

    def _find(
        self, photo: Photo, given: Sequence[GivenFace] | None, upright: bool
    ) -> tuple[list[DetectedFace], int | None]:
        if given is not None:
            return [place_face(face, photo, self._get_detector()) for face in given], None
        detector = self._get_detector()
        if isinstance(detector, CoarseToFineDetector):
            detector.min_face = None if self.min_face is None else self.min_face * photo.scale
        every, turn = (detector.detect(photo.image), 0) if upright else find_faces(detector, photo.image)
        return [face for face in every if face.score >= self.min_score and self._is_large(face, photo)], turn

    def _refine(
        self, photo: Photo, faces: list[DetectedFace], decode: Decode, side: int | None
    ) -> tuple[Photo, list[DetectedFace]]:
        """Return the photograph so large that no crop is blurred, and its faces; small ones are looked at anew."""
        if not faces or photo.scale == 1.0:
            return photo, faces
        needed = side or _FINENESS * self._input_size
        detector = self._get_detector()
        target = express_in_crop(detector, self._contract)
        sides = [_measure_crop(face, target) for face in faces]
        if min(sides) >= needed:
            return photo, faces
        wanted = int(np.ceil(max(photo.image.shape[:2]) * needed / max(min(sides), 1.0)))
        finer = decode(lambda *_: wanted)
        factor = finer.scale / photo.scale
        scaled = [scale_face(face, factor) for face in faces]
        if isinstance(detector, CoarseToFineDetector):
            small = [length < needed for length in sides]
            scaled = [
                detector.refine_landmarks(finer.image, face) if again and face.look is not None else face
                for face, again in zip(scaled, small, strict=True)
            ]
        return finer, scaled

    def _size_of_search(self, width: int, height: int) -> int:
        """Return the longer side at which a photograph is searched."""
        detector = self._get_detector()
        longest = max(width, height)
        if not isinstance(detector, CoarseToFineDetector):
            return longest
        detector.min_face = self.min_face
        return detector.choose_side(longest)

    def _size_of_crop(self, width: int, height: int) -> int:
        """Return the longer side of a picture that is a crop, so that none of its sides is less than the model's."""
        return int(np.ceil(self._input_size * max(width, height) / max(min(width, height), 1)))

    def _is_large(self, face: DetectedFace, photo: Photo) -> bool:
        width = (face.box[2] - face.box[0]) / photo.scale
        # Boxes of the same face differ by some per cent between sizes of search.
        return self.min_face is None or width >= 0.9 * self.min_face

    def _get_detector(self) -> Detector:
        """Return this thread's detector: OpenCV's networks can't be shared between threads."""
        if not hasattr(self._local, "detector"):
            self._local.detector = self._build_detector()
        detector: Detector = self._local.detector
        return detector

    def _build_detector(self) -> Detector:
        return NoDetector() if self.detector == NO_DETECTOR else create_detector(self.detector)


def _measure_crop(face: DetectedFace, target: np.ndarray) -> float:
    """Return the side, in the photograph's pixels, of the crop that is cut around a face."""
    matrix = fit_similarity(face.landmarks, target)
    return float(1 / max(np.hypot(matrix[0, 0], matrix[1, 0]), 1e-6))
