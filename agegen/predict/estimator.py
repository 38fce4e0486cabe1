"""The Python interface: photographs in, faces with age and gender out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import RGB, Photo, decode_photo, read_image_file, resize_image
from agegen.engines.loading import ONNX_SUFFIX, load_engine
from agegen.errors import AgegenError, DataError
from agegen.faces.alignment import align_face
from agegen.faces.detectors import DEFAULT_DETECTOR, create_detector
from agegen.faces.face import DetectedFace, Detector
from agegen.faces.search import find_faces
from agegen.faces.two_looks import TwoLooks
from agegen.files import digest_file
from agegen.machine import count_cores
from agegen.model.calibration import choose_thresholds
from agegen.model.weights import find_checkpoint
from agegen.predict.crop_model import BATCH_FACES, CropModel
from agegen.predict.pictures import read_picture
from agegen.predict.results import NO_FACE, OK, UNREADABLE, FaceEstimate, FacePrediction, PhotoPrediction, choose_gender
from agegen.predict.stream import Waiting, stream_in_order

NO_DETECTOR = "none"
# The longer side, in pixels, to which photographs are decoded.
LARGEST_SIDE = 4096
# At that size a face of so many pixels in a photograph of 110 megapixels is still as large as detectors need.
SMALLEST_DECODED = 80.0
_BATCH_PHOTOS = 128
# Decoded photographs that wait for their estimates, where they are kept for annotation.
_BATCH_BYTES = 200_000_000
_IN_MEMORY = "picture"


@dataclass(frozen=True)
class _Prepared:
    """A photograph whose faces are cut out, or the reason why it has none.

    ``faces`` are in pixels of the photograph as it was decoded, ``scale`` times those of the file, ``size`` (width,
    height).
    """

    file: str
    faces: tuple[DetectedFace | None, ...] = ()
    crops: tuple[RGB, ...] = ()
    photo: Photo | None = None
    reason: str | None = None
    scale: float = 1.0
    size: tuple[int, int] = (0, 0)
    turn: int | None = None


class Estimator:
    """Finds the faces in photographs and estimates the age and gender of each.

    Example::

        from agegen import Estimator

        for face in Estimator.load().predict("photo.jpg"):
            print(face.age, face.gender, face.box)
    """

    def __init__(
        self,
        model: CropModel,
        detector: str = DEFAULT_DETECTOR,
        min_confidence: float | None = None,
        min_score: float = 0.0,
        min_face: float | None = None,
    ) -> None:
        self.model = model
        self.detector = detector
        self.min_score = min_score
        self.min_face = min_face
        if min_face is not None and not min_face >= 1:
            raise AgegenError("--min-face must be at least 1 pixel")
        if not 0 <= min_score <= 1:
            raise AgegenError("--min-score must be between 0 and 1")
        self._asked = min_confidence
        self.min_confidence = model.calibration.min_confidence if min_confidence is None else min_confidence
        if not 0.5 <= self.min_confidence <= 1:
            raise AgegenError("--min-confidence must be between 0.5 and 1")
        # Where small faces are looked for, photographs are decoded whole.
        self._limit = LARGEST_SIDE if min_face is None or min_face >= SMALLEST_DECODED else None
        self._local = threading.local()
        if detector != NO_DETECTOR:
            self._local.detector = create_detector(detector)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        run: Path | str | None = None,
        detector: str = DEFAULT_DETECTOR,
        min_confidence: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        weights: str | None = None,
        min_score: float = 0.0,
        min_face: float | None = None,
    ) -> Estimator:
        """Load the weights that ship for ``model``, or those of a run or checkpoint of your own.

        Args:
            model: a backbone with weights of its own; None stands for the default one.
            run: a run folder or a ``.safetensors`` or ``.onnx`` file in its place.
            detector: ``mtcnn``, ``yunet``, or ``none`` to take each picture as one aligned crop.
            min_confidence: 0.5–1, the probability from which on gender is named; None as the model says.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto``, ``fp32`` or ``bf16``.
            engine: ``onnx``, ``torch``, or ``auto`` for onnxruntime where an ONNX file lies beside the checkpoint.
            weights: which of those that ship for ``model``; None for the default ones.
            min_score: 0–1, how sure the detector must be of a face.
            min_face: the width of the smallest face to be found, in the file's pixels: it decides at which size a
                photograph is searched. None finds 24 pixels in photographs of 1000 pixels, and as much more in larger.

        Raises:
            AgegenError: whatever of these can't be had.
        """
        path = find_checkpoint(model, Path(run) if run is not None else None, weights)
        info, loaded = load_engine(path, engine, device, precision)
        # An ONNX file knows the checkpoint that it was made from.
        digest = getattr(loaded, "source", "") if path.suffix == ONNX_SUFFIX else digest_file(path)
        return cls(CropModel(info, loaded, digest), detector, min_confidence, min_score, min_face)

    def predict(self, picture: str | os.PathLike[str] | RGB | Any) -> list[FacePrediction]:
        """Return the faces of one photograph, from left to right; none where none is found.

        Args:
            picture: a path, encoded bytes, an open file, a Pillow image, or an array: RGB, RGBA or grey; see
                :func:`agegen.predict.pictures.read_picture`.

        Raises:
            DataError: it can't be read, or is something else; the error names its type.
        """
        if isinstance(picture, str | os.PathLike):
            prepared = self._prepare(Path(picture), keep_image=False)
        else:
            prepared = self._cut_faces(_IN_MEMORY, read_picture(picture, self._limit), keep_image=False)
        if prepared.reason is not None:
            raise DataError(f"{prepared.file}: {prepared.reason}")
        return list(self._finish([prepared])[0].faces)

    def predict_many(
        self, paths: Iterable[str | os.PathLike[str]], *, keep_images: bool = False
    ) -> Iterator[PhotoPrediction]:
        """Yield one result per photograph, in the order given, as they come; an unreadable one stops nothing.

        Decoding and detection run in threads beside the inference in batches; memory doesn't grow with
        the number of photographs. ``keep_images`` leaves the photograph and the crops in each result.
        """
        threads = count_cores()
        # Photographs that stay wait in memory, up to 50 MB each: then no more of them than there are threads.
        ahead = threads if keep_images else 4 * threads
        stream = stream_in_order(lambda path: self._prepare(_check_path(path), keep_images), paths, threads, ahead)
        batch: list[_Prepared] = []
        for item in stream:
            if not isinstance(item, Waiting):
                batch.append(item)
            if _is_full(batch) or isinstance(item, Waiting):
                yield from self._finish(batch)
                batch = []
        yield from self._finish(batch)

    def _prepare(self, path: Path, keep_image: bool) -> _Prepared:
        """Decode a photograph and cut its faces out; runs in threads."""
        try:
            photo = decode_photo(read_image_file(path), self._limit)
            return self._cut_faces(str(path), photo, keep_image)
        except DataError as error:
            return _Prepared(str(path), reason=str(error))
        except MemoryError:
            return _Prepared(str(path), reason="not enough memory to decode it")

    def _cut_faces(self, file: str, photo: Photo, keep_image: bool) -> _Prepared:
        faces: tuple[DetectedFace | None, ...]
        turn: int | None = None
        if self.detector == NO_DETECTOR:
            faces, crops = (None,), [photo.image]
        else:
            detector = self._get_detector()
            if isinstance(detector, TwoLooks):
                detector.min_face = None if self.min_face is None else self.min_face * photo.scale
            every, turn = find_faces(detector, photo.image)
            found = [face for face in every if face.score >= self.min_score and self._is_large(face, photo)]
            faces = tuple(found)
            crops = [align_face(photo.image, face, detector, self.model.contract) for face in found]
        if not keep_image:
            # Resized here, in a thread, rather than by the one that runs the model.
            crops = [resize_image(crop, self.model.engine.input_size) for crop in crops]
        size = (photo.image.shape[1], photo.image.shape[0])
        return _Prepared(file, faces, tuple(crops), photo if keep_image else None, None, photo.scale, size, turn)

    def _is_large(self, face: DetectedFace, photo: Photo) -> bool:
        width = (face.box[2] - face.box[0]) / photo.scale
        # Boxes of the same face differ by some per cent between sizes of search.
        return self.min_face is None or width >= 0.9 * self.min_face

    def _get_detector(self) -> Detector:
        """Return this thread's detector: OpenCV's networks can't be shared between threads."""
        if not hasattr(self._local, "detector"):
            self._local.detector = create_detector(self.detector)
        detector: Detector = self._local.detector
        return detector

    def _finish(self, batch: list[_Prepared]) -> list[PhotoPrediction]:
        """Estimate all faces of some photographs in one batch."""
        estimates = iter(self.model.estimate([crop for photo in batch for crop in photo.crops]))
        return [self._describe(photo, [next(estimates) for _ in photo.crops]) for photo in batch]

    def _describe(self, prepared: _Prepared, estimates: list[FaceEstimate]) -> PhotoPrediction:
        status = UNREADABLE if prepared.reason is not None else OK if estimates else NO_FACE
        faces = tuple(
            self._describe_face(prepared, number, face, estimate)
            for number, (face, estimate) in enumerate(zip(prepared.faces, estimates, strict=True), start=1)
        )
        if prepared.photo is None:
            return PhotoPrediction(prepared.file, status, faces, prepared.reason)
        photo = prepared.photo
        return PhotoPrediction(prepared.file, status, faces, None, photo.image, photo.scale, prepared.crops)

    def _describe_face(
        self, prepared: _Prepared, number: int, face: DetectedFace | None, estimate: FaceEstimate
    ) -> FacePrediction:
        marks = None if face is None else (face.landmarks + 0.5) / prepared.scale - 0.5
        return FacePrediction(
            file=prepared.file,
            status=OK,
            face=number,
            box=None if face is None else _round_box(face, prepared),
            age=round(estimate.age, 1),
            age_low=round(estimate.age_low, 1),
            age_high=round(estimate.age_high, 1),
            gender=choose_gender(estimate.p_female, self._choose_threshold(estimate.age)),
            p_female=round(estimate.p_female, 4),
            detector=self.detector,
            score=None if face is None else round(float(face.score), 4),
            size=None if marks is None else round(float(np.linalg.norm(marks[0] - marks[1])), 1),
            landmarks=None if marks is None else tuple((round(float(x), 1), round(float(y), 1)) for x, y in marks),
            turn=prepared.turn,
            model=self.model.name,
        )

    def _choose_threshold(self, age: float) -> float:
        """Return from which probability on a face's gender is named: as was asked for, or as the model says."""
        if self._asked is not None:
            return self._asked
        return float(choose_thresholds(np.array([age]), self.model.calibration)[0])


def _check_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"predict_many takes paths, not {type(path).__module__}.{type(path).__qualname__}; see predict")
    return Path(path)


def _is_full(batch: list[_Prepared]) -> bool:
    """Return whether photographs make a batch: by their faces, their number, or what they take in memory."""
    held = sum(photo.photo.image.nbytes for photo in batch if photo.photo is not None)
    return (
        sum(len(photo.crops) for photo in batch) >= BATCH_FACES or len(batch) >= _BATCH_PHOTOS or held >= _BATCH_BYTES
    )


def _round_box(face: DetectedFace, photo: _Prepared) -> tuple[int, int, int, int]:
    """Return a face's box in the file's own pixels, within its edges."""
    width, height = photo.size
    limits = (width, height, width, height)
    inside = (min(max(value, 0.0), float(limit)) for value, limit in zip(face.box, limits, strict=True))
    left, top, right, bottom = (round(value / photo.scale) for value in inside)
    return left, top, right, bottom
