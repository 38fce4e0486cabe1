"""Bringing datasets with different crops to the same alignment, and detecting uncropped photos among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.data.records import SOURCE_COLUMN, CropBox, FaceRecords
from agegen.errors import CheckpointError, DataError
from agegen.faces.alignment import AlignmentTemplate, compute_target_landmarks, fit_template
from agegen.faces.detection import BUNDLED_DETECTOR, add_cropper, create_detector
from agegen.faces.geometry import DetectedFace, Detector, compute_scale, fit_similarity
from agegen.faces.refinement import CoarseToFineDetector, detect_with_margin
from agegen.options import ReadOptions

# Images of a dataset that are searched for landmarks: enough to know their median to 0.2 % of the side.
SAMPLE_IMAGES = 200
# All of the following are fractions of the side. Crops that differ less than this from the template are used as they
# are: two measurements of UTKFace differ by a fifth of it, and augmentation shifts and scales images by more.
_TOLERANCE = 0.02
# Squares outside these sizes are not cut out. A smaller one holds too few pixels of a face: with a third of the side,
# UTKFace has the same errors as with all of it. A larger one lacks most of the face's surroundings: what is added does
# not replace them (UTKFace's crops reduced to the middle 56 %: an MAE of 10.1 years with, 10.6 without).
_MIN_SIDE, _MAX_SIDE = 0.25, 1.4
# With faces in a smaller share of the images (drawings: 0.6, UTKFace: 0.97), only a square of at least this side is cut
# out: what was detected are perhaps no faces.
_SURE_SHARE, _UNSURE_MIN_SIDE = 0.8, 0.7
# Crops that are not trimmed are worth a notice from this side on: training enlarges faces by up to 15 % anyway.
_UNTRIMMED_SIDE = 1.25
# In UTKFace and FairFace faces lie within 0.02 of the side of their median position and within 10 % of their median
# size; beyond these limits images are uncropped photos.
_SCATTERED_POSITION, _SCATTERED_SIZE = 0.08, 0.25
# With fewer faces, or faces in a smaller share of the images, the measurement is inconclusive.
MIN_FACES, _MIN_SHARE = 20, 0.5


@dataclass(frozen=True)
class LandmarkStats:
    """The landmarks detected in a sample of images.

    Attributes:
        images: number of images searched.
        landmarks: (F, 5, 2) of the largest face in each image with one, as fractions of its width and height.
        reference: (5, 2), the detector's own; see :class:`agegen.faces.geometry.Detector`.
        source: the name of the dataset.
        tight: the images were also searched within a margin, because hardly a face was detected without.
    """

    images: int
    landmarks: NDArray[np.float64]
    reference: NDArray[np.float64]
    source: str = ""
    tight: bool = False

    @property
    def conclusive(self) -> bool:
        """Whether enough faces were detected to describe the crops."""
        return len(self.landmarks) >= max(MIN_FACES, self.images * _MIN_SHARE)

    @property
    def sure(self) -> bool:
        """Whether faces were detected in nearly all images, so that they are certainly faces."""
        return self.conclusive and len(self.landmarks) >= _SURE_SHARE * self.images

    @property
    def sides(self) -> tuple[float, float]:
        """The least and the greatest side of the squares that may be cut out of the images."""
        return _MIN_SIDE if self.sure else _UNSURE_MIN_SIDE, _MAX_SIDE

    @property
    def scattered(self) -> bool:
        """Whether position or size of the faces vary as in photos, not as in aligned crops."""
        if not self.conclusive:
            return False
        centres = self.landmarks.mean(axis=1)
        sizes = np.linalg.norm(self.landmarks[:, 0] - self.landmarks[:, 1], axis=1)
        position = float(np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)))
        size = float(np.median(np.abs(sizes / np.median(sizes) - 1)))
        return position > _SCATTERED_POSITION or size > _SCATTERED_SIZE

    @property
    def template(self) -> AlignmentTemplate | None:
        """The template of the images' crops; None if too few faces were detected, as in drawings."""
        return fit_template(np.median(self.landmarks, axis=0), self.reference) if self.conclusive else None


def load_cropped(
    data: Sequence[str],
    reading: ReadOptions,
    detector: str | None,
    crop_boxes: dict[str, CropBox] | None = None,
    template: AlignmentTemplate | None = None,
) -> FaceRecords:
    """Load datasets and bring their images to the same crop.

    Args:
        data: as for :func:`agegen.data.loading.load_sources`.
        reading: how labels are read.
        detector: finds the face in each image if the images are photos; None for crops.
        crop_boxes: the part of the images to use, by source; None measures it.
        template: alignment of the crops; None means that of the first source.

    Raises:
        AgegenError: invalid data or detector.
    """
    # Prediction checks crops without loading a dataset.
    from agegen.data.loading import load_sources

    records = add_cropper(load_sources(data, reading), detector, template)
    if detector is not None:
        return records
    if crop_boxes is not None:
        return replace(records, trims=crop_boxes)
    measured: list[LandmarkStats] = []
    trims = match_crops(records, template, measured)
    wanted = template or (measured[0].template if measured else None)
    notices = [notice for stats in measured if wanted for notice in make_margin_notices(stats, wanted)]
    return replace(records, trims=trims, notices=(*records.notices, *notices))


def match_crops(
    records: FaceRecords, template: AlignmentTemplate | None = None, measured: list[LandmarkStats] | None = None
) -> dict[str, CropBox]:
    """Return the part of the images to use, by source, so that all sources have the same crop.

    Sources that have it already, that show too few detectable faces, or that are photos have no entry.

    Args:
        records: one dataset or several.
        template: alignment of the crops; None means that of the first source, and leaves a single source unchanged.
        measured: a list to which the measurement of each source is appended.
    """
    if template is None and len(records.sources) == 1:
        return {}
    boxes = {}
    for source in records.sources:
        stats = measure_dataset(records, source)
        if measured is not None:
            measured.append(stats)
        own = None if stats.scattered else stats.template
        if template is None:
            template = own
        elif not stats.tight and own is not None and (box := _fit_crop_box(own, template, stats.sides)) is not None:
            boxes[source] = box
    return boxes


def measure_dataset(records: FaceRecords, source: str | None = None) -> LandmarkStats:
    """Detect the landmarks in a random sample of the images of one source, or of all."""
    rows = np.arange(len(records))
    if source is not None and SOURCE_COLUMN in records.frame.columns:
        rows = np.flatnonzero((records.frame[SOURCE_COLUMN] == source).to_numpy())
    sample = np.random.default_rng(0).permutation(rows)[:SAMPLE_IMAGES]
    return measure_crops(lambda: _decode_readable(records, sample), source or records.source)


def measure_crops(decode: Callable[[], Iterable[RGB]], source: str) -> LandmarkStats:
    """Detect the landmarks in images that are crops or photos; ``decode`` yields the images, and again if required."""
    detector = create_detector(BUNDLED_DETECTOR)
    stats = measure_images(decode(), detector)
    if not stats.conclusive:
        # Detectors miss most faces in crops without surroundings.
        stats = measure_images(decode(), detector, tight=True)
    return replace(stats, source=source)


def measure_images(images: Iterable[RGB], detector: Detector, tight: bool = False) -> LandmarkStats:
    """Detect the landmarks of the largest face in each image; ``tight``: also search the image within a margin."""
    landmarks: list[Any] = []
    count = 0
    for image in images:
        count += 1
        if faces := detector.detect(image) or (detect_with_margin(detector, image) if tight else []):
            largest = max(faces, key=lambda face: face.box[2] - face.box[0])
            landmarks.append(largest.landmarks / (image.shape[1], image.shape[0]))
    return LandmarkStats(count, np.array(landmarks).reshape(-1, 5, 2), detector.reference, tight=tight)


def measure_expected(images: Iterable[RGB], wanted: AlignmentTemplate) -> LandmarkStats:
    """Detect the landmarks of faces only where crops of the template ``wanted`` have them, until they are conclusive.

    The position and size that are found may differ from those expected, but not by much: faces elsewhere, as in
    photos, count as not detected.
    """
    detector = create_detector(BUNDLED_DETECTOR)
    assert isinstance(detector, CoarseToFineDetector)
    target = compute_target_landmarks(detector, wanted)
    landmarks: list[Any] = []
    count = 0
    for image in images:
        count += 1
        height, width = image.shape[:2]
        expected = DetectedFace((0.0, 0.0, float(width), float(height)), target * (width, height), 0.0)
        face = detector.refine_landmarks(image, expected)
        if face.refined_score is not None:
            landmarks.append(face.landmarks / (width, height))
        if len(landmarks) == MIN_FACES:
            break
    return LandmarkStats(count, np.array(landmarks).reshape(-1, 5, 2), detector.reference)


def make_crop_notices(stats: LandmarkStats) -> list[str]:
    """Return a notice if the images are uncropped photos: models are trained on crops and fail on anything else."""
    if not stats.scattered:
        return []
    return [
        f"these images look like uncropped photos, not like aligned face crops: face position or size varies "
        f"(faces detected in {len(stats.landmarks)} of {stats.images} sampled images). Create crops with "
        "`agegen data crop PATH OUT`, or give --detector mtcnn to `agegen train` and `agegen eval`"
    ]


def make_margin_notices(stats: LandmarkStats, wanted: AlignmentTemplate, trimmed: bool = True) -> list[str]:
    """Return a notice if the faces of crops are so much larger or smaller than in ``wanted`` that no part matches.

    Also if that is unknown, because hardly a face was detected in many images. Without ``trimmed``, the matching part
    of the images is not cut out, so that a smaller difference matters.
    """
    if not stats.conclusive and stats.images >= MIN_FACES:
        return [
            f"faces were detected in only {len(stats.landmarks)} of {stats.images} sampled images of {stats.source}: "
            "whether they are crops as the model expects is unknown"
        ]
    own = None if stats.scattered else stats.template
    if own is None:
        return []
    side = _measure_side(own, wanted)
    low, high = stats.sides if trimmed and not stats.tight else (1 / _UNTRIMMED_SIDE, _UNTRIMMED_SIDE)
    if low < side < high:
        return []
    size = f"{side:.1f} times larger" if side > 1 else f"{1 / side:.1f} times smaller"
    cause = "the images are cut too tightly" if side > 1 else "the images show too much around them"
    advice = "Use the original photos with --detector mtcnn" if side > 1 else "Use --detector mtcnn"
    return [
        f"the faces of {stats.source} are {size} than the model expects: {cause}, so the estimates are much less "
        f"accurate. {advice}, or create crops with `agegen data crop PATH OUT`"
    ]


def read_crop_boxes(content: Any) -> dict[str, CropBox]:
    """Read the crop boxes in the record of a run.

    Raises:
        CheckpointError: invalid content.
    """
    try:
        return {str(name): CropBox(**box) for name, box in content.items()}
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"invalid crop boxes of the run's data: {error}") from error


def _decode_readable(records: FaceRecords, rows: NDArray[np.int64]) -> Iterator[RGB]:
    for row in rows:
        try:
            yield records.decode(int(row))
        except DataError:
            continue


def _fit_crop_box(own: AlignmentTemplate, wanted: AlignmentTemplate, sides: tuple[float, float]) -> CropBox | None:
    """Return the square that gives crops of the template ``wanted``; None if it is not needed or not sensible."""
    source, target = np.array(own.landmarks), np.array(wanted.landmarks)
    side = _measure_side(own, wanted)
    left, top = source.mean(axis=0) - side * target.mean(axis=0)
    if max(abs(side - 1), abs(left + side / 2 - 0.5), abs(top + side / 2 - 0.5)) < _TOLERANCE:
        return None
    if not sides[0] < side < sides[1]:
        return None
    return CropBox(round(float(left), 4), round(float(top), 4), round(side, 4))


def _measure_side(own: AlignmentTemplate, wanted: AlignmentTemplate) -> float:
    """Return the side, as a fraction of the crop's, of the square in which faces have the size of ``wanted``."""
    return 1 / compute_scale(fit_similarity(np.array(own.landmarks), np.array(wanted.landmarks)))
