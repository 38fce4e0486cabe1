"""How data sets are cropped: where each has its landmarks, and which part of its pictures has them elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.data.loading import load_sources
from agegen.data.records import SOURCE_COLUMN, CropBox, FaceRecords
from agegen.errors import CheckpointError, DataError
from agegen.faces.alignment import AlignmentTemplate, fit_contract
from agegen.faces.detection import SHIPPED_DETECTOR, LargestFaceCropper, create_detector
from agegen.faces.geometry import Detector, fit_similarity
from agegen.options import ReadOptions

# How many of a data set's pictures are searched for landmarks: their median is then known to 0.2 % of the side.
CROPS_MEASURED = 200
# In shares of the side. Crops that are nearer than this to what is wanted are taken as they are: two measurements
# of UTKFace differ by a fifth of it, and training shifts and scales its pictures by more.
_TOLERANCE = 0.02
# Crops of faces differ by some padding; what lies further apart (drawings, whole photographs) isn't brought together.
_LEAST_SIDE, _GREATEST_SIDE = 0.7, 1.4
# In UTKFace and FairFace faces lie within 0.02 of the side from their median place and 10 % of its size; in
# photographs anywhere.
_SCATTERED_PLACE, _SCATTERED_SIZE = 0.08, 0.25
# Fewer pictures, or a smaller share with a face found, say nothing of how a set is cropped.
_LEAST_CROPS, _LEAST_SHARE = 20, 0.5


@dataclass(frozen=True)
class LandmarkStats:
    """What a detector found in a sample of pictures.

    Attributes:
        looked: pictures searched.
        landmarks: (F, 5, 2) of the largest face of each picture with one, in shares of its width and height.
        reference: the detector's own (5, 2); see :class:`agegen.faces.refinement.CoarseToFineDetector`.
    """

    looked: int
    landmarks: NDArray[np.float64]
    reference: NDArray[np.float64]

    @property
    def conclusive(self) -> bool:
        """Whether enough faces were found to tell."""
        return len(self.landmarks) >= max(_LEAST_CROPS, self.looked * _LEAST_SHARE)

    @property
    def scattered(self) -> bool:
        """Whether the faces lie here and there, as in photographs, rather than alike, as in aligned crops."""
        if not self.conclusive:
            return False
        centres = self.landmarks.mean(axis=1)
        sizes = np.linalg.norm(self.landmarks[:, 0] - self.landmarks[:, 1], axis=1)
        place = float(np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)))
        size = float(np.median(np.abs(sizes / np.median(sizes) - 1)))
        return place > _SCATTERED_PLACE or size > _SCATTERED_SIZE

    @property
    def contract(self) -> AlignmentTemplate | None:
        """The crop that the pictures have; None where too few show a face to detect: drawings, say."""
        return fit_contract(np.median(self.landmarks, axis=0), self.reference) if self.conclusive else None


def describe_crops(survey: LandmarkStats) -> list[str]:
    """Return a notice where pictures are no crops of faces: models are trained on crops, and guess elsewhere."""
    if not survey.scattered:
        return []
    return [
        f"these pictures look like photographs, not like aligned crops of faces (their faces lie here and there, in "
        f"{len(survey.landmarks)} of {survey.looked} looked at): give --detector mtcnn, or make crops with "
        "`agegen data crop PATH OUT`"
    ]


def survey_crops(records: FaceRecords, source: str | None = None) -> LandmarkStats:
    """Search a sample of the pictures, of one source or all, for landmarks."""
    rows = np.arange(len(records))
    if source is not None and SOURCE_COLUMN in records.frame.columns:
        rows = np.flatnonzero((records.frame[SOURCE_COLUMN] == source).to_numpy())
    sample = np.random.default_rng(0).permutation(rows)[:CROPS_MEASURED]
    return survey_pictures(_decode_all(records, sample), create_detector(SHIPPED_DETECTOR))


def survey_pictures(pictures: Iterable[RGB], detector: Detector) -> LandmarkStats:
    """Search pictures for the landmarks of their largest faces."""
    found: list[Any] = []
    looked = 0
    for picture in pictures:
        looked += 1
        if faces := detector.detect(picture):
            largest = max(faces, key=lambda face: face.box[2] - face.box[0])
            found.append(largest.landmarks / (picture.shape[1], picture.shape[0]))
    return LandmarkStats(looked, np.array(found).reshape(-1, 5, 2), detector.reference)


def _decode_all(records: FaceRecords, rows: NDArray[np.int64]) -> Iterator[RGB]:
    for row in rows:
        try:
            yield records.decode(int(row))
        except DataError:
            continue


def match_crops(
    records: FaceRecords, contract: AlignmentTemplate | None = None, surveys: list[LandmarkStats] | None = None
) -> dict[str, CropBox]:
    """Return by source which part of its pictures to take, so that all faces are cut alike.

    Args:
        records: of one data set or several.
        contract: of the crops that are wanted; None takes those of the first source, and leaves one set as it is.
        surveys: a list to which what was found in each source is added.

    Sources that are cut so already, or show no faces to detect, or are no crops at all, have no entry.
    """
    if contract is None and len(records.sources) == 1:
        return {}
    trims = {}
    for source in records.sources:
        survey = survey_crops(records, source)
        if surveys is not None:
            surveys.append(survey)
        measured = None if survey.scattered else survey.contract
        if contract is None:
            contract = measured
        elif measured is not None and (trim := _fit_trim(measured, contract)) is not None:
            trims[source] = trim
    return trims


def read_trims(content: Any) -> dict[str, CropBox]:
    """Read the trims of a run's record.

    Raises:
        CheckpointError: they have another form.
    """
    try:
        return {str(name): CropBox(**trim) for name, trim in content.items()}
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"the crops of the run's data can't be read: {error}") from error


def _fit_trim(measured: AlignmentTemplate, wanted: AlignmentTemplate) -> CropBox | None:
    source, target = np.array(measured.landmarks), np.array(wanted.landmarks)
    matrix = fit_similarity(source, target)
    side = 1 / float(np.hypot(matrix[0, 0], matrix[1, 0]))
    left, top = source.mean(axis=0) - side * target.mean(axis=0)
    if max(abs(side - 1), abs(left + side / 2 - 0.5), abs(top + side / 2 - 0.5)) < _TOLERANCE:
        return None
    if not _LEAST_SIDE < side < _GREATEST_SIDE:
        return None
    return CropBox(round(float(left), 4), round(float(top), 4), round(side, 4))


def load_cropped(
    data: Sequence[str],
    reading: ReadOptions,
    detector: str | None,
    trims: dict[str, CropBox] | None = None,
    contract: AlignmentTemplate | None = None,
) -> FaceRecords:
    """Load data sets whose pictures are cropped alike.

    Args:
        data: as for :func:`agegen.data.loading.load_sources`.
        reading: how labels are read.
        detector: finds the faces, where the pictures are photographs; None for crops.
        trims: which part of the pictures to take, by source; None measures it.
        contract: of the crops that are wanted; None takes those of the first source.

    Raises:
        AgegenError: the data or the detector can't be used.
    """
    records = load_sources(data, reading)
    if detector is not None:
        return replace(records, cropper=LargestFaceCropper(detector, contract))
    return replace(records, trims=match_crops(records, contract) if trims is None else trims)
