"""From an image to the crops of its faces: decode it no larger than needed, detect the faces, align the crops."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from agegen.data.images import (
    DECODE_SECONDS,
    RGB,
    Photo,
    count_pages,
    decode_photo,
    read_image_file,
    render_rgb,
    resize_image,
    scale_to_8_bits,
)
from agegen.errors import AgegenError, DataError
from agegen.faces.alignment import CROP_SIZE, AlignmentTemplate, align_face, compute_target_landmarks
from agegen.faces.detection import create_detector
from agegen.faces.geometry import DetectedFace, Detector, GivenFace, Points, compute_scale, fit_similarity
from agegen.faces.refinement import CoarseToFineDetector, detect_landmarks, find_faces, scale_face
from agegen.predict.boxes import NoDetector
from agegen.predict.results import KEEP_NOTHING, ExtractedFaces, KeepOptions

NO_DETECTOR = "none"
# The longer side, in pixels, to which photos are decoded at most.
LARGEST_SIDE = 4096
# At that size a face with this width in a photo of 110 megapixels is still as large as detectors require; for smaller
# faces photos are decoded without a limit.
_LIMITED_FACE = 80.0
# Crops are extracted from an image in which they have this many times the side of the model's input: with less, they
# are blurred. tests/benchmarks/README.md has the effect of 1 and 2.
_OVERSAMPLING = 1.5
# Cubic and Lanczos filters go below black by up to a quarter of white beside hard edges.
_UNDERSHOOT = 0.25
# Books have some hundred pages. In these times every page of a scan is decoded even on a slow machine.
_MAX_PAGES, _FILE_SECONDS = 1000, 300.0
# Bounding boxes of the same face differ by some per cent between detection sizes.
_BOX_TOLERANCE = 0.9

# Decodes a photo. The argument returns, given its width and height, the longer side that is needed; None means as
# large as the limit allows.
Decode = Callable[[Callable[[int, int], int] | None], Photo]


@dataclass(frozen=True)
class DecodeLimits:
    """How much of a file is decoded.

    Attributes:
        seconds: time for decoding an image once.
        file_seconds: time for decoding the pages of a file; the page that exceeds it is still decoded.
        pages: number of pages.
    """

    seconds: float = DECODE_SECONDS
    file_seconds: float = _FILE_SECONDS
    pages: int = _MAX_PAGES


class FaceExtractor:
    """Detects the faces in images and extracts the aligned crops that a model takes; thread-safe."""

    def __init__(
        self,
        detector: str,
        template: AlignmentTemplate,
        input_size: int,
        min_score: float = 0.0,
        min_face: float | None = None,
    ) -> None:
        """Create the first detector, so that an invalid name fails early.

        Args:
            detector: its name, or ``none`` to process each image as one aligned crop.
            template: alignment of the crops.
            input_size: side of the model's input in pixels.
            min_score: minimum detection score, 0–1.
            min_face: width of the smallest face to detect, in pixels of the file; None for the default size.

        Raises:
            AgegenError: unknown detector, missing weights, or a number out of range.
        """
        if min_face is not None and not min_face >= 1:
            raise AgegenError("--min-face must be at least 1 pixel")
        if not 0 <= min_score <= 1:
            raise AgegenError("--min-score must be between 0 and 1")
        self.detector, self.min_score, self.min_face = detector, min_score, min_face
        self._template, self._input_size = template, input_size
        self.limits = DecodeLimits()
        self.limit = LARGEST_SIDE if min_face is None or min_face >= _LIMITED_FACE else None
        self._local = threading.local()
        self._local.detector = self._create_detector()

    def with_min_score(self, min_score: float) -> FaceExtractor:
        """Return a copy with another ``min_score`` that shares the detectors."""
        other = copy.copy(self)
        other.min_score = min_score
        return other

    def with_limits(self, limits: DecodeLimits) -> FaceExtractor:
        """Return a copy with other limits of decoding that shares the detectors."""
        other = copy.copy(self)
        other.limits = limits
        return other

    def extract_file(
        self,
        file: str,
        content: bytes | Callable[[], bytes] | None = None,
        keep: KeepOptions = KEEP_NOTHING,
        given: Sequence[GivenFace] | None = None,
    ) -> list[ExtractedFaces]:
        """Return the faces of an image file: one result, or one per page.

        Args:
            file: its path, or only its name where ``content`` is given.
            content: the content of the file, or a function that returns it.
            keep: what the results keep.
            given: the faces, if they are known; then the image is not searched.
        """
        try:
            if content is None:
                content = read_image_file(file)
            elif callable(content):
                content = content()
        except DataError as error:
            return [ExtractedFaces(file, reason=str(error))]
        pages = 1 if given is not None else count_pages(content, self.limits.pages + 1)
        if pages == 1:
            return [self._extract_page(file, _PageDecoder(content, self), 0, keep, given)]
        return list(self._extract_pages(file, _PageDecoder(content, self), pages, keep))

    def extract(
        self,
        file: str,
        decode: Decode,
        keep: KeepOptions = KEEP_NOTHING,
        given: Sequence[GivenFace] | None = None,
        upright: bool = False,
    ) -> ExtractedFaces:
        """Return the faces of a photo.

        Args:
            file: its name in the results.
            decode: decodes it, at the size that the detector needs, and again larger for small faces.
            keep: what the result keeps.
            given: the faces, if they are known; then the photo is not searched.
            upright: the photo is known to be upright, as video frames are, so rotated copies are not searched.

        Raises:
            DataError: it cannot be decoded.
        """
        # A kept image, and the positions of given faces, require the photo at its full size at once.
        full = keep.images or given is not None
        if given is None and self.detector == NO_DETECTOR:
            photo = decode(None if full or keep.crops else self._choose_crop_size)
            faces: tuple[DetectedFace | None, ...] = (None,)
            crops, turn = [photo.image], None
        else:
            photo = decode(None if full else self._choose_detection_size)
            found, turn = self._detect(photo, given, upright)
            if not full:
                photo, found = self._enlarge(photo, found, decode, CROP_SIZE if keep.crops else None)
            crops = [align_face(photo.image, face, self._get_detector(), self._template) for face in found]
            faces = tuple(found)
        if not keep.full_crops:
            # Resize here, in a worker thread, rather than in the thread that runs the model.
            crops = [resize_image(crop, self._input_size) for crop in crops]
        return ExtractedFaces(
            file,
            faces,
            tuple(crops),
            photo if keep.images else None,
            scale=photo.scale,
            size=(photo.image.shape[1], photo.image.shape[0]),
            turn=turn,
            keep=keep,
        )

    def _extract_pages(
        self, file: str, decoder: _PageDecoder, pages: int, keep: KeepOptions
    ) -> Iterator[ExtractedFaces]:
        """Yield the faces of each page, and the reason if pages are left out."""
        for page in range(pages):
            if page == self.limits.pages:
                left_out = f"it has more than {page:,} pages; the others were left out"
            elif decoder.seconds > self.limits.file_seconds:
                left_out = f"decoding takes more than {self.limits.file_seconds:g} seconds; pages were left out"
            else:
                yield replace(self._extract_page(file, decoder, page, keep, None), page=page + 1)
                continue
            yield ExtractedFaces(file, reason=left_out, page=page + 1)
            return

    def _extract_page(
        self, file: str, decoder: _PageDecoder, page: int, keep: KeepOptions, given: Sequence[GivenFace] | None
    ) -> ExtractedFaces:
        try:
            return self.extract(file, lambda enough: decoder.decode(enough, page), keep, given)
        except DataError as error:
            return ExtractedFaces(file, reason=str(error))
        except MemoryError:
            return ExtractedFaces(file, reason="not enough memory to decode it")

    def _detect(
        self, photo: Photo, given: Sequence[GivenFace] | None, upright: bool
    ) -> tuple[list[DetectedFace], int | None]:
        """Return the faces and by how many degrees clockwise the photo must be rotated to be upright."""
        detector = self._get_detector()
        if given is not None:
            return [detect_landmarks(face, photo, detector) for face in given], None
        if isinstance(detector, CoarseToFineDetector):
            detector.min_face = None if self.min_face is None else self.min_face * photo.scale
        faces, turn = (detector.detect(photo.image), 0) if upright else find_faces(detector, photo.image)
        return [face for face in faces if face.score >= self.min_score and self._is_large(face, photo)], turn

    def _enlarge(
        self, photo: Photo, faces: list[DetectedFace], decode: Decode, crop_side: int | None
    ) -> tuple[Photo, list[DetectedFace]]:
        """Return the photo so large that no crop is blurred, and its faces; the landmarks of small ones are refined."""
        if not faces or photo.scale == 1.0:
            return photo, faces
        required = crop_side or _OVERSAMPLING * self._input_size
        detector = self._get_detector()
        target = compute_target_landmarks(detector, self._template)
        sides = [_measure_crop(face, target) for face in faces]
        if min(sides) >= required:
            return photo, faces
        longest = int(np.ceil(max(photo.image.shape[:2]) * required / max(min(sides), 1.0)))
        larger = decode(lambda *_: longest)
        scaled = [scale_face(face, larger.scale / photo.scale) for face in faces]
        if isinstance(detector, CoarseToFineDetector):
            scaled = [
                detector.refine_landmarks(larger.image, face)
                if side < required and face.refined_score is not None
                else face
                for face, side in zip(scaled, sides, strict=True)
            ]
        return larger, scaled

    def _choose_detection_size(self, width: int, height: int) -> int:
        """Return the longer side at which a photo is searched."""
        detector = self._get_detector()
        longest = max(width, height)
        if not isinstance(detector, CoarseToFineDetector):
            return longest
        detector.min_face = self.min_face
        return detector.choose_side(longest)

    def _choose_crop_size(self, width: int, height: int) -> int:
        """Return the longer side of an image that is a crop such that its shorter side is the model's input size."""
        return int(np.ceil(self._input_size * max(width, height) / max(min(width, height), 1)))

    def _is_large(self, face: DetectedFace, photo: Photo) -> bool:
        width = (face.box[2] - face.box[0]) / photo.scale
        return self.min_face is None or width >= _BOX_TOLERANCE * self.min_face

    def _get_detector(self) -> Detector:
        """Return this thread's detector: OpenCV's networks cannot be shared between threads."""
        if not hasattr(self._local, "detector"):
            self._local.detector = self._create_detector()
        detector: Detector = self._local.detector
        return detector

    def _create_detector(self) -> Detector:
        return NoDetector() if self.detector == NO_DETECTOR else create_detector(self.detector)


class _PageDecoder:
    """Decodes the pages of a file; ``seconds`` is the time that it took so far."""

    def __init__(self, content: bytes, extractor: FaceExtractor) -> None:
        self._content, self._extractor, self.seconds = content, extractor, 0.0

    def decode(self, enough: Callable[[int, int], int] | None, page: int) -> Photo:
        """Decode a page, numbered from 0; see :func:`agegen.data.images.decode_photo`."""
        started = time.monotonic()
        try:
            limits = self._extractor.limits
            return decode_photo(self._content, self._extractor.limit, enough, page, limits.seconds)
        finally:
            self.seconds += time.monotonic() - started


def open_image(image: Any, limit: int | None) -> Decode:
    """Return the function that decodes an image in memory to RGB (height, width, 3), uint8.

    Args:
        image: the content of an image file, a binary file open for reading, a Pillow image (rotated as its EXIF
            orientation says), or an array: RGB or RGBA (height, width, 3 or 4) or greyscale (height, width), uint8
            0–255, float 0–1 or 0–255, or integers of more bits, whose values are mapped to 0–255. OpenCV's arrays are
            BGR: pass ``image[..., ::-1]``.
        limit: maximum longer side in pixels; only for the content of a file.

    Raises:
        DataError: ``image`` is something else, and the error names its type; or an array has negative numbers.
    """
    if hasattr(image, "read"):
        image = image.read()
    if isinstance(image, bytes | bytearray | memoryview):
        content = bytes(image)
        return lambda enough: decode_photo(content, limit, enough)
    if isinstance(image, Image.Image):
        from_pillow = Photo(render_rgb(image), 1.0)
        return lambda _: from_pillow
    if isinstance(image, np.ndarray):
        # Subclasses, such as masked arrays, have other methods.
        from_array = Photo(_convert_array(np.asarray(image)), 1.0)
        return lambda _: from_array
    raise DataError(
        "an image must be a path, bytes, an open file, a Pillow image or a NumPy array, not "
        f"{type(image).__module__}.{type(image).__qualname__}"
    )


def _convert_array(array: np.ndarray) -> RGB:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    numbers = np.issubdtype(array.dtype, np.number) and not np.issubdtype(array.dtype, np.complexfloating)
    if not (grey or coloured) or 0 in array.shape or not numbers:
        raise DataError(
            "an array must be RGB (height, width, 3), RGBA (height, width, 4) or greyscale (height, width), with real "
            f"numbers, not {array.dtype} {array.shape}"
        )
    _refuse_negative(array)
    values = array if array.dtype == np.uint8 else scale_to_8_bits(array)
    flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return render_rgb(Image.fromarray(np.ascontiguousarray(flat)))


def _refuse_negative(array: np.ndarray) -> None:
    """Raise DataError for an array that was normalized for a network; resampled floats may be slightly below 0."""
    if np.issubdtype(array.dtype, np.unsignedinteger):
        return
    finite = array[np.isfinite(array)]
    tolerance = _UNDERSHOOT * finite.max(initial=0) if np.issubdtype(array.dtype, np.floating) else 0
    if finite.min(initial=0) < -tolerance:
        raise DataError(
            f"an array must not have negative numbers, as normalized ones do (its minimum is {finite.min():g}). "
            "Give RGB as uint8 0–255 or float 0–1."
        )


def _measure_crop(face: DetectedFace, target: Points) -> float:
    """Return the side, in pixels of the photo, of the aligned crop of a face."""
    return 1 / max(compute_scale(fit_similarity(face.landmarks, target)), 1e-6)
